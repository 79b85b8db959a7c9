"""Claim: the loop calls the collectives that its version calls for, on every rank alike."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import TypeVar

from verify.schedule import Expected
from verify.trace.trace import Trace
from verify.verdict import Compared, Divergence, Finding, Verdict

NAME = "collectives"

_T = TypeVar("_T")


def collectives(traces: Sequence[Trace], expected: Expected | None) -> Finding:
    """Compares each rank's collectives, step by step: with what the schedule calls for, then with rank 0's.

    Args:
        traces: one a rank.
        expected: what the schedule calls for; None compares the ranks with each other alone.
    """
    loop, first = traces[0].loop, traces[0]
    # Steps that only one of them takes are compared too, with none.
    scheduled = () if expected is None else expected.collectives
    steps = max(len(scheduled), *(trace.steps for trace in traces))
    compared = Compared(steps, sum(len(step) for trace in traces for step in trace.collectives))
    for step in range(steps if expected is not None else 0):
        due = _in_step(scheduled, step)
        for trace in traces:
            seen = tuple(c.name for c in _in_step(trace.collectives, step))
            if seen != due:
                summary = f"rank {trace.rank} called {_names(seen)} in step {step}, expected {_names(due)}"
                return _fail(trace, step, summary, compared, _totals(traces, expected))
    for step in range(steps):
        for trace in traces[1:]:
            ours, theirs = _in_step(first.collectives, step), _in_step(trace.collectives, step)
            if ours != theirs:
                a, b = next((a, b) for a, b in zip_longest(ours, theirs) if a != b)
                summary = (
                    f"in step {step} rank 0 called {a or 'nothing'} where rank {trace.rank} called {b or 'nothing'}"
                )
                return _fail(trace, step, summary, compared, _totals(traces, expected))
    if not compared.elements:
        return Finding(NAME, loop, Verdict.UNKNOWN, "no collective was called: nothing ran in parallel", compared)
    if expected is None and len(traces) < 2:
        return Finding(NAME, loop, Verdict.UNKNOWN, "one rank has nobody to agree with", compared)
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


def _in_step(collectives: Sequence[tuple[_T, ...]], step: int) -> tuple[_T, ...]:
    return collectives[step] if step < len(collectives) else ()
