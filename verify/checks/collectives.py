"""Claim: the loop calls the collectives that its version calls for, on every rank alike."""

from __future__ import annotations

from collections.abc import Sequence

from verify.schedule import Expected
from verify.trace import Collective, Trace
from verify.verdict import Compared, Divergence, Finding, Verdict

NAME = "collectives"


def collectives(traces: Sequence[Trace], expected: Expected | None) -> Finding:
    """Compares each rank's collectives, step by step: with what the schedule calls for, then with rank 0's.

    Args:
        traces: one a rank.
        expected: what the schedule calls for; None compares the ranks with each other alone.
    """
    loop = traces[0].loop
    compared = Compared(traces[0].steps, sum(len(step) for trace in traces for step in trace.collectives))
    if expected is not None:
        for step, due in enumerate(expected.collectives):
            for trace in traces:
                seen = tuple(c.name for c in trace.collectives[step]) if step < trace.steps else ()
                if seen != due:
                    return _fail(
                        trace,
                        step,
                        f"rank {trace.rank} called {_names(seen)} in step {step}, expected {_names(due)}",
                        compared,
                        _totals(traces, expected),
                    )
    first = traces[0]
    for step in range(first.steps):
        for trace in traces[1:]:
            ours, theirs = first.collectives[step], trace.collectives[step]
            if ours != theirs:
                a, b = next((a, b) for a, b in _padded(ours, theirs) if a != b)
                summary = f"in step {step} rank 0 called {a or 'nothing'} where rank {trace.rank} called {b or 'nothing'}"
                return _fail(trace, step, summary, compared, _totals(traces, expected))
    if not compared.elements:
        return Finding(NAME, loop, Verdict.UNKNOWN, "no collective was called: nothing ran in parallel", compared)
    counts = ", ".join(f"{first.count(name)} {name}" for name in sorted({c.name for s in first.collectives for c in s}))
    how = "as computed from the schedule" if expected is not None else "alike on every rank"
    return Finding(NAME, loop, Verdict.PASS, f"{counts} on each rank, {how}", compared)


def _fail(trace: Trace, step: int, summary: str, compared: Compared, details: tuple[str, ...]) -> Finding:
    divergence = Divergence(step, (0, trace.rank), "collectives")
    return Finding(NAME, trace.loop, Verdict.FAIL, summary, compared, divergence, details)


def _totals(traces: Sequence[Trace], expected: Expected | None) -> tuple[str, ...]:
    names = {c.name for trace in traces for step in trace.collectives for c in step}
    names |= {name for step in expected.collectives for name in step} if expected else set()
    return tuple(
        f"in the whole loop, {name}: "
        + ", ".join(f"{trace.count(name)} on rank {trace.rank}" for trace in traces)
        + (f", expected {expected.total(name)}" if expected else "")
        for name in sorted(names)
    )


def _names(collectives: Sequence[str]) -> str:
    return ", ".join(collectives) if collectives else "none"


def _padded(
    ours: Sequence[Collective], theirs: Sequence[Collective]
) -> list[tuple[Collective | None, Collective | None]]:
    length = max(len(ours), len(theirs))
    return [(ours[i] if i < len(ours) else None, theirs[i] if i < len(theirs) else None) for i in range(length)]
