"""The reference one step at a time, from an ``x_t`` that was recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from verify.bits import same_bits
from verify.ranks.group import Alone
from verify.ranks.rank import Rank
from verify.schedule import Schedule
from verify.targets.protocol import REFERENCE
from verify.tasks.stage import Plan, Stage
from verify.trace.listener import HeardDenoiser, Listener
from verify.trace.trace import Trace


@dataclass(frozen=True)
class StepCheck:
    """One step to be computed anew.

    Attributes:
        step: which.
        ranks: the ranks that began and ended it with the same bytes, so that one check serves them all.
        x_t: what they began with.
        checker: the rank that computes it anew: not the first of ``ranks``, whose trace it was taken from.
    """

    step: int
    ranks: tuple[int, ...]
    x_t: Float[Tensor, "tokens channels"]
    checker: int


def share_out(traces: Sequence[Trace]) -> list[StepCheck]:
    """Every step of every rank, shared out over the ranks; equal bytes are checked once."""
    checks = []
    for step in range(min(trace.steps for trace in traces)):
        alike: list[list[int]] = []
        for rank, trace in enumerate(traces):
            before = _before(trace, step)
            if before is None:
                continue
            for group in alike:
                other = traces[group[0]]
                theirs = _before(other, step)
                if theirs is not None and same_bits(theirs, before) and same_bits(other.x_t[step], trace.x_t[step]):
                    group.append(rank)
                    break
            else:
                alike.append([rank])
        for group in alike:
            turn = step % len(group)
            owner = group[turn]
            before = _before(traces[owner], step)
            assert before is not None
            ranks = (owner, *(r for r in group if r != owner))
            checks.append(StepCheck(step, ranks, before, (owner + 1) % len(traces)))
    return checks


def _before(trace: Trace, step: int) -> Tensor | None:
    return trace.start if step == 0 else trace.x_t[step - 1]


def recompute(rank: Rank, plan: Plan, checks: Sequence[StepCheck]) -> tuple[Tensor, list[tuple[StepCheck, Tensor]]]:
    """This rank's initial latent, and the reference's ``x_t`` after each of the checks that are this rank's to make.

    A step is the target's reference loop over a schedule of that step alone.
    """
    stage = Stage.of(rank, replace(plan, loop=REFERENCE, loop_reference=None))
    results = []
    with stage.arithmetic():
        for check in checks:
            if check.checker != rank.rank:
                continue
            rank.status.activity(f"step {check.step} of the reference, alone")
            denoiser = HeardDenoiser(stage.prepared.denoiser, Listener(), check.step)
            request = stage.request.resolved(_only(stage.request.schedule, check.step))
            x_t = stage.loop(denoiser, request, check.x_t.to(rank.device), Alone(), lambda step, x_t: None)
            results.append((check, x_t))
    return stage.prepared.x_0, results


def _only(schedule: Schedule, step: int) -> Schedule:
    alone = slice(step, step + 1)
    return Schedule(schedule.timesteps[alone], schedule.dts[alone], schedule.guided[alone])
