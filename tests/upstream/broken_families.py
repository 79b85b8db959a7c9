"""A family's loop with one thing wrong, whatever the family: planted faults."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from broken_upstream import _Group
from torch import Tensor

from verify.targets.vllm_omni.families.loops import parallel


def right(denoiser: Any, request: Any, x_0: Tensor, group: Any, observe: Any) -> Tensor:
    return parallel(denoiser, request, x_0, group, observe)


def scale_of_one_rank(denoiser: Any, request: Any, x_0: Tensor, group: Any, observe: Any) -> Tensor:
    """The last rank guides by another scale."""
    family = denoiser.family
    asked = family.asked
    if group.rank == group.world_size - 1:
        family.asked = replace(asked, scale=asked.scale + 0.5)
    try:
        return parallel(denoiser, request, x_0, group, observe)
    finally:
        family.asked = asked


def gather_skipped(denoiser: Any, request: Any, x_0: Tensor, group: Any, observe: Any) -> Tensor:
    """In step 2 nobody gathers: each rank takes its own velocity for all of them."""
    now = 0

    def all_gather(velocity: Tensor) -> list[Tensor]:
        return [velocity.clone() for _ in range(group.world_size)] if now == 2 else group.all_gather(velocity)

    def after(step: int, x_t: Tensor, state: Any = None) -> None:
        nonlocal now
        now = step + 1
        observe(step, x_t)

    return parallel(denoiser, request, x_0, _Group(group, all_gather=all_gather), after)


def one_element(denoiser: Any, request: Any, x_0: Tensor, group: Any, observe: Any) -> Tensor:
    """Rank 0 gets one element of one velocity wrong by 2**-10, in step 2; final latents may agree again."""
    now = 0

    def all_gather(velocity: Tensor) -> list[Tensor]:
        gathered: list[Tensor] = group.all_gather(velocity)
        if now == 2 and group.rank == 0:
            gathered[0].view(-1)[0] += 2.0**-10
        return gathered

    def after(step: int, x_t: Tensor, state: Any = None) -> None:
        nonlocal now
        now = step + 1
        observe(step, x_t)

    return parallel(denoiser, request, x_0, _Group(group, all_gather=all_gather), after)
