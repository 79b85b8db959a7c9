"""Claim: the branches really ran in parallel: each rank evaluated its own, and only that, at every guided step."""

from __future__ import annotations

from collections.abc import Sequence

from verify.expected import Expected
from verify.request import DenoiseRequest
from verify.schedule import BROADCAST
from verify.trace.trace import Trace
from verify.verdict import Compared, Divergence, Finding, Verdict

NAME = "parallelism_engaged"


def parallelism_engaged(traces: Sequence[Trace], request: DenoiseRequest, expected: Expected | None) -> Finding:
    """Compares each rank's branch evaluations, step by step, with what the schedule calls for.

    Without ``expected``, a guided step must evaluate every branch somewhere and no rank may evaluate them all.
    """
    loop, guided = traces[0].loop, request.schedule.guided
    compared = Compared(len(guided), sum(len(step) for trace in traces for step in trace.branches))
    if len(traces) < 2:
        return Finding(NAME, loop, Verdict.UNKNOWN, "one rank runs nothing in parallel", compared)
    if not any(guided):
        return Finding(NAME, loop, Verdict.UNKNOWN, "no step is guided: there was nothing to run in parallel", compared)
    for step, is_guided in enumerate(guided):
        seen = [trace.branches[step] if step < trace.steps else () for trace in traces]
        for trace, own in zip(traces, seen, strict=True):
            complaint = None
            if expected is not None and own != (due := expected.branches[trace.rank][step]):
                complaint = f"evaluated {_names(own)}, expected {_names(due)}"
            elif expected is None and is_guided and own and set(own) >= set(request.branches):
                complaint = "evaluated every branch for itself"
            if complaint:
                kind = "guided" if is_guided else "unguided"
                divergence = Divergence(step, (0, trace.rank), "branch evaluations")
                summary = f"rank {trace.rank} {complaint} in step {step} ({kind})"
                return Finding(NAME, loop, Verdict.FAIL, summary, compared, divergence)
        missing = set(request.branches) - {branch for own in seen for branch in own}
        if is_guided and missing and request.schedule.evaluations_of(step):
            summary = f"no rank evaluated {_names(sorted(missing))} in step {step} (guided)"
            divergence = Divergence(step, (0, 0), "branch evaluations")
            return Finding(NAME, loop, Verdict.FAIL, summary, compared, divergence)
    if not all(_exchanged(trace) for trace in traces):
        return Finding(NAME, loop, Verdict.UNKNOWN, "the loop never gathered: nothing was exchanged", compared)
    how = "no rank evaluated every branch" if expected is None else "each rank evaluated its own branch, and only that,"
    summary = f"{how} at {sum(guided)} guided steps"
    return Finding(NAME, loop, Verdict.PASS, summary, compared)


def _exchanged(trace: Trace) -> bool:
    """Whether the rank exchanged anything but the noise that is shared at the start."""
    called = [c.name for step in trace.collectives for c in step]
    heard = [h for step in trace.exchanges or () for h in step if h.call is None and not h.before_evaluating]
    return bool(heard) or called.count(BROADCAST) > 1 or any(name != BROADCAST for name in called)


def _names(branches: Sequence[str]) -> str:
    return ", ".join(branches) if branches else "nothing"
