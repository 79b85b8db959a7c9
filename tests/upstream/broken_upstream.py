"""Upstream's loop with one thing wrong, put in through its group: negative controls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from verify.targets.vllm_omni.loops import generate_image
from verify.targets.vllm_omni.stepwise import stepwise


class _Group:
    """The group it is given, with a collective replaced."""

    def __init__(self, group: Any, **replaced: Callable[..., Any]) -> None:
        self._group = group
        vars(self).update(replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._group, name)


def right(denoiser: Any, request: Any, x_0: Tensor, group: Any, observe: Any) -> Tensor:
    return generate_image(denoiser, request, x_0, group, observe)


def no_broadcast(denoiser: Any, request: Any, x_0: Tensor, group: Any, observe: Any) -> Tensor:
    """Nobody shares the initial noise."""
    return generate_image(denoiser, request, x_0, _Group(group, broadcast=lambda x_t, src=0: x_t), observe)


def swapped_everywhere(denoiser: Any, request: Any, x_0: Tensor, group: Any, observe: Any) -> Tensor:
    """Every rank takes the gathered branches in the wrong order: ranks agree, and are wrong together."""
    swapped = _Group(group, all_gather=lambda v_t: group.all_gather(v_t)[::-1])
    return generate_image(denoiser, request, x_0, swapped, observe)


def swapped_on_last_rank(denoiser: Any, request: Any, x_0: Tensor, group: Any, observe: Any) -> Tensor:
    """One rank takes the gathered branches in the wrong order."""
    if group.rank < group.world_size - 1:
        return generate_image(denoiser, request, x_0, group, observe)
    return swapped_everywhere(denoiser, request, x_0, group, observe)


def writes_to_cache(denoiser: Any, request: Any, x_0: Tensor, group: Any, observe: Any) -> Tensor:
    """Puts other keys and values into the gen context after step 4 on rank 0, as an update of the cache would."""

    def after(step: int, x_t: Tensor, state: Any = None) -> None:
        cache = denoiser.contexts["gen"].past_key_values
        if step == 4 and group.rank == 0:
            for held in (cache.key_cache, cache.value_cache):
                held[1] = held[1] + 1
        observe(step, x_t)

    return generate_image(denoiser, request, x_0, group, after)


def stepwise_mended(denoiser: Any, request: Any, x_0: Tensor, group: Any, observe: Any) -> Tensor:
    """Step execution with what upstream leaves out: the noise that was received reaches the request's state."""
    return stepwise(denoiser, request, x_0, group, observe, mended=True)
