"""Repeats steps of the reference on a rank, each from the ``x_t`` that the loop under test began it with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from verify.bits import describe, same_bits
from verify.ranks.rank import Rank
from verify.rounding.deviations import Deviation, Deviations
from verify.rounding.randomised import NoiseTable, randomised
from verify.tasks.recompute_step import StepCheck, own_checks, share_out, start_of, taken_anew
from verify.tasks.stage import Plan, Stage, reference_plan
from verify.trace.trace import Trace

# Of the draws. It is no part of a request: which draws are made must not depend on what is judged.
SEED = 0x5EED


@dataclass(frozen=True)
class StepTaken:
    """One step as a loop under test took it.

    Attributes:
        check: the step, its ranks, what they began with and which rank repeats it.
        after: the ``x_t`` that they ended with.
    """

    check: StepCheck
    after: Float[Tensor, "tokens channels"]


def steps_taken(traces: Sequence[Trace]) -> list[StepTaken]:
    """Every step of every rank, shared out over the ranks; ranks with the same bytes are judged once."""
    return [StepTaken(check, traces[check.ranks[0]].after(check.step)) for check in share_out(traces)]


def resample(rank: Rank, plan: Plan, taken: Sequence[StepTaken], draws: int) -> tuple[Tensor, list[Deviation]]:
    """Where the reference starts, and how far each of this rank's steps lies from the reference and from its draws.

    A step that equals the reference in every byte needs no draw.
    """
    stage = Stage.of(rank, reference_plan(plan))
    own = {(check.step, check.ranks): check for check in own_checks(stage, [step.check for step in taken])}
    table = NoiseTable(rank.device, SEED)
    with stage.arithmetic():
        found = [
            _judged(stage, check, step.after, draws, table)
            for step in taken
            if (check := own.get((step.check.step, step.check.ranks))) is not None
        ]
    return start_of(stage), found


def _judged(stage: Stage, check: StepCheck, after: Tensor, draws: int, table: NoiseTable) -> Deviation:
    engine = after.to(stage.rank.device)
    # A recorded pass shows a mode no operators; what it was recorded from has the same bits.
    eager = getattr(stage.prepared.denoiser, "eager", stage.prepared.denoiser)
    reference = taken_anew(stage, check, eager)
    if reference.x_t is None:
        return Deviation(check.step, check.ranks, False, {}, {}, reason=reference.reason)
    if same_bits(reference.x_t, engine):
        return Deviation(check.step, check.ranks, True, {}, {})
    if (reference.x_t.shape, reference.x_t.dtype) != (engine.shape, engine.dtype):
        form = f"{describe(engine)}, where the reference has {describe(reference.x_t)}"
        return Deviation(check.step, check.ranks, False, {}, {}, form=form)
    deviations = Deviations(reference.x_t, engine)
    for draw in range(draws):
        with randomised(table, hash((SEED, check.step, draw))):
            drawn = taken_anew(stage, check, eager)
        if drawn.x_t is None:
            return Deviation(check.step, check.ranks, False, {}, {}, reason=drawn.reason)
        deviations.add(drawn.x_t)
    return deviations.energies(check.step, check.ranks)
