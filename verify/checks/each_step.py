"""Claim: each step, taken alone from the ``x_t`` before it, is the reference's step.

The inductive form of ``matches_reference``: if the start is right and every step is, so is the whole; and where several
steps are wrong, each is told, because a wrong ``x_t`` does not make the steps after it wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from verify.bits import first_difference, same_bits
from verify.checks.agreement import BEFORE_THE_LOOP
from verify.checks.matches_reference import NAME
from verify.trace.trace import Trace
from verify.verdict import Compared, Divergence, Finding, Verdict


def each_step(
    traces: Sequence[Trace],
    start: Tensor,
    recomputed: Sequence[tuple[int, tuple[int, ...], Tensor]],
    reasons: Mapping[int, str] | None = None,
) -> Finding:
    """Compares each rank's ``x_t`` after a step with what the reference makes of the ``x_t`` before it.

    Args:
        traces: one a rank.
        start: the request's noise.
        recomputed: step, the ranks it was computed for, and the reference's ``x_t`` after it.
        reasons: by step, why the reference could not take it alone; empty where it does not repeat its own step.
    """
    loop, elements = traces[0].loop, start.numel()
    begun = [trace for trace in traces if trace.start is not None]
    covered = {(step, rank) for step, ranks, _ in recomputed for rank in ranks}
    compared = Compared(len({step for step, _ in covered}), (len(covered) + len(begun)) * elements)
    due = {(s, t.rank) for t in traces for s in range(t.steps) if s or t.start is not None}
    reasons = reasons or {}
    broken = [
        (BEFORE_THE_LOOP, t.rank, start, t.start)
        for t in begun
        if t.start is not None and not same_bits(start, t.start)
    ]
    for step, ranks, right in recomputed:
        for rank in ranks:
            if not same_bits(right, traces[rank].x_t[step]):
                broken.append((step, rank, right, traces[rank].x_t[step]))
    broken.sort(key=lambda found: found[:2])
    if broken:
        step, rank, right, seen = broken[0]
        what = f"takes step {step} otherwise than the reference does from the same x_t"
        if step == BEFORE_THE_LOOP:
            what = "begins with another x_t than the request's noise"
        summary = f"rank {rank} of {loop} {what}"
        same = (right.shape, right.dtype) == (seen.shape, seen.dtype)
        divergence = Divergence(
            step, (0, rank), "x_t", ("reference", loop), first_difference(right, seen) if same else None
        )
        details = tuple(f"also wrong by itself: step {s} on rank {r}" for s, r, _, _ in broken[1:])
        data = {"wrong_steps": [[s, r] for s, r, _, _ in broken]}
        return Finding(NAME, loop, Verdict.FAIL, summary, compared, divergence, details, data)
    if reasons:
        step, why = min(reasons.items())
        summary = (
            f"the reference, taken one step at a time, does not repeat its own step {step}"
            f"{f' ({why})' if why else ''}: its sampler remembers more than x_t; give the target a method resume, see "
            "verify/targets/protocol.py, or leave --reference inductive out"
        )
        return Finding(NAME, loop, Verdict.UNKNOWN, summary, compared)
    if covered != due or not covered:
        summary = f"{len(due - covered)} of {len(due)} steps were not computed anew"
        return Finding(NAME, loop, Verdict.UNKNOWN, summary, compared)
    summary = "every step, computed anew on another rank from the x_t before it, gives the same bytes"
    return Finding(NAME, loop, Verdict.PASS, summary, compared)
