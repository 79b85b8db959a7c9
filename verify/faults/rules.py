"""Faults in what the loop computes from the request: combine, schedule, noise, parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from verify.combine import combine_cfg
from verify.faults.registry import BEFORE, UNKNOWN, Wiring, fault
from verify.schedule import Schedule


def _use_combine(wiring: Wiring, combine: Callable[..., Tensor]) -> None:
    wiring.patches.enter_context(mock.patch("verify.loops.guidance.combine_cfg", combine))


@fault(source="vo 4659, 4660, 6136", breaks="combine", step=0, rank=None, caught_by="matches_reference")
def combine_skipped(wiring: Wiring) -> None:
    """The gathered branches are thrown away and gen is used alone, on every rank."""
    _use_combine(wiring, lambda gen, *rest: gen)


@fault(source="vo 4882, 4900", breaks="combine", step=0, rank=1, caught_by="ranks_agree")
def scale_lost_on_one_rank(wiring: Wiring) -> None:
    """Rank 1 combines with a default text scale instead of the request's."""
    if wiring.rank == 1:
        wiring.use_request(cfg_text_scale=3.0)


@fault(source="vo 4882, 4900", breaks="combine", step=0, rank=None, caught_by="matches_reference")
def scale_lost_on_every_rank(wiring: Wiring) -> None:
    """Every rank combines with a default text scale: all agree, all are wrong."""
    wiring.use_request(cfg_text_scale=3.0)


@fault(source="vo 4882, 4900", breaks="combine", step=0, rank=0, caught_by="ranks_agree", image=True)
def img_scale_lost_on_one_rank(wiring: Wiring) -> None:
    """Rank 0 combines with a default image scale instead of the request's."""
    if wiring.rank == 0:
        wiring.use_request(cfg_img_scale=2.0)


@fault(source="vo 4882, 4900", breaks="combine", step=0, rank=0, caught_by="ranks_agree")
def renorm_type_lost_on_one_rank(wiring: Wiring) -> None:
    """Rank 0 combines with another renorm type than the request's."""
    if wiring.rank == 0:
        wiring.use_request(cfg_renorm_type="channel")


@fault(source="vo 1578 (review)", breaks="combine", step=0, rank=None, caught_by="matches_reference", image=True)
def third_branch_dropped(wiring: Wiring) -> None:
    """Image guidance is silently left out, on every rank."""
    _use_combine(wiring, lambda gen, text, img, *rest: combine_cfg(gen, text, None, *rest))


@fault(source="vo 1578 (review)", breaks="combine", step=0, rank=1, caught_by="ranks_agree", image=True)
def third_branch_dropped_on_one_rank(wiring: Wiring) -> None:
    """Rank 1 alone leaves image guidance out."""
    if wiring.rank == 1:
        _use_combine(wiring, lambda gen, text, img, *rest: combine_cfg(gen, text, None, *rest))


@fault(source="DESIGN, autocast and norms", breaks="combine", step=0, rank=1, caught_by="ranks_agree")
def combine_in_another_dtype(wiring: Wiring) -> None:
    """Rank 1 combines in float32 and rounds once at the end."""

    def combine(gen: Tensor, text: Tensor, img: Tensor | None, *rest: Any) -> Tensor:
        lifted = None if img is None else img.float()
        return combine_cfg(gen.float(), text.float(), lifted, *rest).to(gen.dtype)

    if wiring.rank == 1:
        _use_combine(wiring, combine)


@fault(source="vo 4470, 4509, 6359, 7049", breaks="schedule", step=49, rank=0, caught_by="schedule")
def one_step_too_many(wiring: Wiring) -> None:
    """The terminal 0 is taken for the start of one more step."""
    request = wiring.request
    longer = Schedule.of(request.num_timesteps + 1, request.timestep_shift, request.cfg_interval)
    wiring.use_schedule(longer.to(request.schedule.dts.device))
    last = request.schedule.steps - 1
    wiring.on_velocity(lambda denoiser, x_t, step, branch: denoiser.velocity(x_t, min(step, last), branch))


@fault(source="verl-project/verl-omni 279", breaks="schedule", step=4, rank=1, caught_by="ranks_agree")
def schedule_differs_on_one_rank(wiring: Wiring) -> None:
    """Rank 1 has another step size at one step."""
    if wiring.rank == 1:
        schedule = wiring.request.schedule
        dts = schedule.dts.clone()
        dts[4] *= 1.01
        wiring.use_schedule(replace(schedule, dts=dts))


@fault(source="vo 0.18 to 0.30", breaks="schedule", step=41, rank=None, caught_by="collectives")
def bound_rule_differs(wiring: Wiring) -> None:
    """Every rank takes the first step outside the interval for a guided one, as the other bound rule would."""
    schedule = wiring.request.schedule
    wiring.use_schedule(replace(schedule, guided=_flipped(schedule.guided, 41)))


@fault(
    source="vo 0.18 to 0.30", breaks="schedule", step=41, rank=1, caught_by=UNKNOWN, stuck_in="all_gather 1 of step 41"
)
def bound_rule_differs_on_one_rank(wiring: Wiring) -> None:
    """Rank 1 alone takes that step for a guided one, and waits for a gather that nobody joins."""
    if wiring.rank == 1:
        schedule = wiring.request.schedule
        wiring.use_schedule(replace(schedule, guided=_flipped(schedule.guided, 41)))


@fault(source="vo 4081", breaks="noise", step=BEFORE, rank=0, caught_by="matches_reference")
def noise_drawn_again(wiring: Wiring) -> None:
    """The initial noise comes from another generator: the image changes, the ranks agree."""
    generator = torch.Generator().manual_seed(99)
    wiring.x_0 = torch.randn(wiring.x_0.shape, generator=generator).to(wiring.x_0.device)


@fault(source="huggingface/diffusers 11056", breaks="noise", step=BEFORE, rank=0, caught_by="matches_reference")
def noise_in_another_dtype(wiring: Wiring) -> None:
    """The initial noise is drawn in bf16 and lifted to float32."""
    wiring.x_0 = wiring.x_0.bfloat16().float()


def _flipped(guided: tuple[bool, ...], step: int) -> tuple[bool, ...]:
    return (*guided[:step], not guided[step], *guided[step + 1 :])
