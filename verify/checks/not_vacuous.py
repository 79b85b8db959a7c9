"""Claim: the run could have shown a fault. Where all branches agree, or nothing moves, any loop passes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

from verify.bits import same_bits
from verify.request import DenoiseRequest
from verify.trace.sensitivity import Sensitivity
from verify.trace.trace import Trace
from verify.verdict import Compared, Finding, Verdict

NAME = "not_vacuous"


def not_vacuous(
    request: DenoiseRequest,
    runs: Mapping[str, Sequence[Trace]],
    reference: Trace | None,
    sensitivity: Sensitivity | None,
) -> Finding:
    """Looks for anything that would let a wrong loop pass.

    Args:
        request: the schedule and branches that loops are held to.
        runs: the traces of each loop.
        reference: the trace of the reference, which evaluates every branch.
        sensitivity: what the trial showed; None where none was made.
    """
    traces = next(iter(runs.values()))
    looked_at = traces[0] if reference is None else reference
    steps = looked_at.kept
    compared = Compared(len(steps), len(steps) * looked_at.final.numel())
    reasons = list(_reasons(request, traces, looked_at, sensitivity))
    if reasons:
        return Finding(NAME, "*", Verdict.UNKNOWN, reasons[0], compared, details=tuple(reasons[1:]))
    if sensitivity is None:
        return Finding(NAME, "*", Verdict.UNKNOWN, "whether inputs of the network matter was not tried", compared)
    summary = "branches differ, guidance and every step change x_t, noises differ between ranks, inputs are read"
    return Finding(NAME, "*", Verdict.PASS, summary, compared)


def _reasons(
    request: DenoiseRequest,
    traces: Sequence[Trace],
    looked_at: Trace,
    sensitivity: Sensitivity | None,
) -> Iterator[str]:
    branches = request.branches
    if len(set(branches)) < len(branches):
        yield f"the branches are named {', '.join(branches)}: two have one name"
    meant = set() if sensitivity is None else {frozenset(pair) for pair in sensitivity.alike}
    for step, a, b in looked_at.alike:
        if step < len(request.schedule.guided) and request.schedule.guided[step] and frozenset((a, b)) not in meant:
            yield f"the velocities of {a} and {b} have the same bytes in step {step}: mixed-up branches would not show"
            break
    for step in looked_at.kept:
        before = looked_at.start if step == 0 else looked_at.after(step - 1) if step - 1 in looked_at.kept else None
        if before is not None and same_bits(before, looked_at.after(step)):
            yield f"step {step} leaves x_t as it was: a fault in it would not show"
            break
    for one, other in combinations(traces, 2):
        if one.noise and one.noise == other.noise and not one.equal_noise:
            yield (
                f"rank {one.rank} and rank {other.rank} were given the same initial noise: a loop that does not share "
                "it would pass"
            )
            break
    if sensitivity is None:
        return
    if sensitivity.failed:
        yield f"whether inputs of the network matter could not be tried: {sensitivity.failed}"
    at = f"in step {sensitivity.step}"
    for a, b in sensitivity.equal_branches:
        if frozenset((a, b)) not in meant:
            yield f"the velocities of {a} and {b} have the same bytes {at}"
    for branch in sensitivity.unrepeated:
        yield f"the velocity of {branch} differs when it is computed again {at}: no comparison of bytes can hold"
    for branch in sensitivity.deaf:
        yield f"the velocity of {branch} is the same at another x_t {at}"
    for cache in sensitivity.unread:
        yield f"a change of the cache {cache} changes no velocity: what is shown is not what the network reads"
    if sensitivity.guided is False:
        yield f"the step is the same {at} when every branch answers as {branches[0]}: guidance has no effect"
