"""Claim: the loop takes the steps of the schedule, one fewer than there are timesteps, and guides those inside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from verify.bits import same_bits
from verify.request import DenoiseRequest
from verify.schedule import Schedule
from verify.trace.trace import Trace
from verify.verdict import Compared, Divergence, Finding, Verdict

NAME = "schedule"


# How far a step size may be from the schedule's: an engine may round it, and the velocity, to bfloat16.
_ROUNDED = 2.0**-7
# The formats in which engines hold a timestep.
_TIMES = (torch.float32, torch.bfloat16, torch.float16)


def schedule_followed(
    traces: Sequence[Trace], request: DenoiseRequest, sizes: Sequence[float] = (), reference: Trace | None = None
) -> Finding:
    """Counts each rank's steps; where a target says which schedule its loops follow, compares that step by step.

    Args:
        traces: one a rank.
        request: with the schedule that loops are held to.
        sizes: the step sizes that the reference was seen to take; empty where they were not seen.
        reference: what else the network is asked for is compared with the reference's; None where there is none.
    """
    loop, due = traces[0].loop, request.schedule
    known = [trace.followed for trace in traces if trace.followed is not None]
    compared = Compared(
        due.steps, len(traces) + sum(3 * min(due.steps, schedule.steps) for schedule in known) + len(sizes)
    )
    for trace in traces:
        if trace.steps != due.steps:
            summary = (
                f"rank {trace.rank} took {trace.steps} Euler steps, expected {due.steps}: {request.num_timesteps} "
                "timesteps end in 0, which starts no step"
            )
            divergence = Divergence(min(trace.steps, due.steps), (trace.rank, trace.rank), "number of steps")
            return Finding(NAME, loop, Verdict.FAIL, summary, compared, divergence)
    for trace in traces:
        different = None if trace.followed is None else _first_difference(request, trace.followed)
        if different is not None:
            step, what = different
            divergence = Divergence(step, (trace.rank, trace.rank), "schedule")
            return Finding(NAME, loop, Verdict.FAIL, f"rank {trace.rank} {what}", compared, divergence)
    for trace in traces:
        wrong = _wrongly_asked(trace, due, reference)
        if wrong is not None:
            step, what = wrong
            divergence = Divergence(step, (trace.rank, trace.rank), "what the network was asked for")
            return Finding(NAME, loop, Verdict.FAIL, f"rank {trace.rank} {what}", compared, divergence)
    for step, (seen, size) in enumerate(zip(sizes, due.dts.tolist(), strict=False)):
        if abs(seen - size) > _ROUNDED * abs(size):
            summary = f"the reference takes step {step} with dt = {seen:.6g}, expected {size:.6g}"
            return Finding(NAME, loop, Verdict.FAIL, summary, compared, Divergence(step, (0, 0), "step size"))
    seen = len(sizes) == due.steps
    said = f"{due.steps} Euler steps{' of the sizes of the schedule' if seen else ''} on every rank"
    if len(known) == len(traces):
        said += f", {due.guided_steps} of them guided, at the schedule's times"
    elif not due.has_sizes:
        said += "; its steps have no sizes"
    elif not seen:
        said += "; the sizes of the steps were not seen"
    if any(asked for trace in traces for step in trace.asked_for for asked in step):
        said += "; the network was asked for what each step calls for"
    return Finding(NAME, loop, Verdict.PASS, said, compared)


def _wrongly_asked(trace: Trace, due: Schedule, reference: Trace | None) -> tuple[int, str] | None:
    """The first evaluation that was asked for another timestep, expert or other value than its step calls for.

    A further evaluation in a step is at a time of the sampler's own: it is compared with the reference's.
    """
    for step, evaluations in enumerate(trace.asked_for[: due.steps]):
        branches = trace.branches[step]
        for place, (branch, asked) in enumerate(zip(branches, evaluations, strict=False)):
            number = branches[:place].count(branch)
            said = _said_by(reference, step, branch, number)
            expected = {name: said[name] for name in asked if name in said}
            if "t" in asked and number == 0:
                expected["t"] = due.timesteps[step]
            if "expert" in asked and step < len(due.experts):
                expected["expert"] = due.experts[step]
            for name, value in expected.items():
                if not _is_asked(asked[name], value):
                    again = f", at evaluation {number + 1} of {branch}" if number else ""
                    what = f"asked the network for {name} = {asked[name]!r} in step {step}{again}, expected {value!r}"
                    return step, what
    return None


def _said_by(reference: Trace | None, step: int, branch: str, number: int) -> Mapping[str, Any]:
    """What the reference asked for at the same evaluation."""
    if reference is None or step >= len(reference.asked_for):
        return {}
    pairs = zip(reference.branches[step], reference.asked_for[step], strict=False)
    same = [asked for each, asked in pairs if each == branch]
    return same[number] if number < len(same) else {}


def _is_asked(asked: Any, due: Any) -> bool:
    """Whether they are one value; an engine may hold a time as an integer, or in fewer bits than its schedule."""
    if isinstance(asked, (int, float)) and isinstance(due, (int, float)) and not isinstance(asked, bool):
        rounded = [torch.tensor(due, dtype=torch.float64).to(dtype).item() for dtype in _TIMES]
        return asked == due or asked in rounded
    return type(asked) is type(due) and bool(asked == due)


def _first_difference(request: DenoiseRequest, followed: Schedule) -> tuple[int, str] | None:
    """The first step at which ``followed`` is not the request's schedule, and how."""
    due = request.schedule
    if due.steps != followed.steps:
        return min(due.steps, followed.steps), f"follows a schedule of {followed.steps} steps, expected {due.steps}"
    if len(followed.dts) != due.steps:
        sizes = len(followed.dts)
        return min(due.steps, sizes), f"follows a schedule of {sizes} step sizes, expected {due.steps}"
    if len(followed.guided) != due.steps:
        flags = len(followed.guided)
        return min(due.steps, flags), f"follows a schedule of {flags} guided flags, expected {due.steps}"
    for step in range(due.steps):
        t, its = due.timesteps[step], followed.timesteps[step]
        # Floats, but never computed with: NaN would differ from itself, and should.
        if t != its:
            return step, f"takes step {step} at t = {its!r}, expected {t!r}"
        if due.guided[step] != followed.guided[step]:
            does = "guides" if followed.guided[step] else "does not guide"
            lo, hi = request.cfg_interval
            return step, (
                f"{does} step {step} at t = {t!r}, which the schedule does {'' if due.guided[step] else 'not '}guide: "
                f"lo < t <= hi with the interval ({lo}, {hi}], compared in float32"
            )
        # The reference follows this schedule too, so a wrong step size would show in no x_t.
        if not same_bits(due.dts[step], followed.dts[step]):
            return step, f"takes step {step} with dt = {_size(followed.dts[step])}, expected {_size(due.dts[step])}"
    return None


def _size(dt: Tensor) -> str:
    return f"{dt.item()!r} ({str(dt.dtype).removeprefix('torch.')})"
