"""Faults that one request does not show: something of an earlier request is still there, or only the first is wrong.

They are judged in a sequence of requests. What they keep lives as long as a rank's process does, so that each changes
its ranks for good.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from verify.faults.registry import Wiring, fault
from verify.loops import guidance
from verify.protocols import Denoiser
from verify.runner.requests import SEQUENCE

_kept: dict[object, Tensor] = {}
_scales: dict[str, float] = {}
_runs: list[int] = []


@fault(source="vo 2371, 5287", breaks="denoiser", step=0, rank=None, caught_by="requests_repeat", requests=SEQUENCE,
       lasting=True)  # fmt: skip
def velocities_kept_by_step_and_branch(wiring: Wiring) -> None:
    """A step cache that nobody resets: the network is asked, and the first request's velocities are taken."""

    def remembered(denoiser: Denoiser, x_t: Tensor, step: int, branch: str) -> Tensor:
        return _kept.setdefault((step, branch, x_t.shape), denoiser.velocity(x_t, step, branch).clone())

    wiring.on_velocity(remembered)


@fault(source="none public", breaks="schedule", step=0, rank=None, caught_by="requests_repeat", requests=SEQUENCE,
       lasting=True)  # fmt: skip
def step_sizes_kept_by_their_number(wiring: Wiring) -> None:
    """Step sizes are cached by their number alone; the second request has another shift."""
    schedule = wiring.request.schedule
    wiring.use_schedule(replace(schedule, dts=_kept.setdefault(schedule.steps, schedule.dts)))


@fault(source="none public", breaks="combine", step=0, rank=None, caught_by="requests_repeat", requests=SEQUENCE,
       lasting=True)  # fmt: skip
def scale_of_the_first_request(wiring: Wiring) -> None:
    """A compiled combine keeps the text scale of the request that it was compiled for."""
    wiring.use_request(cfg_text_scale=_scales.setdefault("text", wiring.request.cfg_text_scale))


@fault(source="vo 1729", breaks="noise", step=-1, rank=None, caught_by="requests_repeat", requests=SEQUENCE,
       lasting=True)  # fmt: skip
def noise_kept_by_its_shape(wiring: Wiring) -> None:
    """The initial noise is drawn once for each size, whatever the seed."""
    wiring.on_broadcast(lambda group, x_0: _kept.setdefault(x_0.shape, group.broadcast(x_0).clone()).clone())


@fault(source="pt 192920", breaks="combine", step=2, rank=None, caught_by="requests_repeat", requests=SEQUENCE,
       lasting=True)  # fmt: skip
def buffer_of_the_first_size(wiring: Wiring) -> None:
    """Velocities are combined in static buffers of the first request's size; a smaller one is read from their end."""
    combine: Any = vars(guidance)["combine_cfg"]

    def in_buffers(*arguments: object) -> Tensor:
        slots = [_in_buffer(n, v) if isinstance(v, Tensor) else v for n, v in enumerate(arguments)]
        tokens = next(len(v) for v in arguments if isinstance(v, Tensor))
        combined: Tensor = combine(*slots)
        return combined[-tokens:]

    wiring.patches.enter_context(mock.patch.object(guidance, "combine_cfg", in_buffers))


def _in_buffer(slot: int, velocity: Tensor) -> Tensor:
    buffer = _kept.setdefault(slot, velocity.clone())
    if buffer.dtype != velocity.dtype or len(buffer) < len(velocity):
        return velocity
    buffer[: len(velocity)] = velocity
    return buffer


@fault(source="none public", breaks="loop", step=0, rank=1, caught_by="requests_repeat", requests=SEQUENCE,
       lasting=True)  # fmt: skip
def wrong_from_the_second_request_on(wiring: Wiring) -> None:
    """Rank 1 is right once: then a buffer that it does not reset moves an element by one ULP."""
    _runs.append(wiring.rank)
    _bump(wiring, 0, len(_runs) > 1)


@fault(source="none public", breaks="loop", step=2, rank=1, caught_by="ranks_agree", requests=SEQUENCE,
       lasting=True)  # fmt: skip
def wrong_in_the_first_request_only(wiring: Wiring) -> None:
    """Rank 1 is wrong once, while it warms up, and right ever after."""
    _runs.append(wiring.rank)
    _bump(wiring, 2, len(_runs) == 1)


def _bump(wiring: Wiring, at: int, wrong: bool) -> None:
    def change(step: int, x_t: Tensor) -> Tensor:
        if wrong and (step, wiring.rank) == (at, 1):
            x_t = x_t.clone()
            x_t.view(torch.int32)[3, 5] += 1
        return x_t

    wiring.after_step(change)


@fault(source="pt 159548", breaks="loop", step=3, rank=None, caught_by="requests_repeat", requests=SEQUENCE)
def memory_that_nothing_wrote(wiring: Wiring) -> None:
    """An accumulator is made by empty in place of zeros: a page fresh from the system holds zeros, as it happens."""

    def add(step: int, x_t: Tensor) -> Tensor:
        # Beyond 32 MiB the allocator always asks the system.
        return x_t + torch.empty(1 << 24, device=x_t.device)[: x_t.numel()].view_as(x_t) if step == 3 else x_t

    wiring.after_step(add)
