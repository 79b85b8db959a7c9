"""Loops as a user would hand them over, each with one thing wrong. ``local`` itself is the one that is right."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from verify import combine_cfg


def denoise(
    denoiser: Any,
    request: Any,
    x_0: Tensor,
    group: Any,
    observe: Any,
    *,
    share: bool = True,
    gather: Callable[[Tensor], list[Tensor]] | None = None,
    before_step: Callable[[int, Tensor], Tensor] = lambda step, x_t: x_t,
    after_step: Callable[[int, Tensor], Tensor] = lambda step, x_t: x_t,
) -> Tensor:
    """The local loop, with openings to break it through."""
    schedule = request.schedule
    gather = gather or group.all_gather
    x_t = group.broadcast(x_0) if share else x_0
    for step in range(len(schedule.timesteps)):
        x_t = before_step(step, x_t)
        if schedule.guided[step]:
            gen, text, *img = gather(denoiser.velocity(x_t, step, request.branches[group.rank]))
            v_t = combine_cfg(
                gen,
                text,
                img[0] if img else None,
                request.cfg_text_scale,
                request.cfg_img_scale,
                request.cfg_renorm_type,
                request.cfg_renorm_min,
            )
        else:
            v_t = denoiser.velocity(x_t, step, "gen")
        x_t = after_step(step, x_t - v_t * schedule.dts[step])
        observe(step, x_t)
    return x_t


def right(*loop: Any) -> Tensor:
    return denoise(*loop)


def right_with_views(denoiser: Any, request: Any, x_0: Tensor, group: Any, observe: Any) -> Tensor:
    """A transposed, non-contiguous ``x_t`` is fine."""
    return denoise(denoiser, request, x_0, group, observe, after_step=lambda step, x_t: x_t.t().contiguous().t())


def _set_bits(x_t: Tensor, index: tuple[int, int], pattern: int) -> Tensor:
    x_t = x_t.clone()
    x_t.view(torch.int32)[index] = pattern
    return x_t


def one_bit(denoiser: Any, request: Any, x_0: Tensor, group: Any, observe: Any) -> Tensor:
    """Flips the lowest mantissa bit of one element on rank 1 after step 7."""

    def flip(step: int, x_t: Tensor) -> Tensor:
        if step == 7 and group.rank == 1:
            return _set_bits(x_t, (3, 5), int(x_t.view(torch.int32)[3, 5]) ^ 1)
        return x_t

    return denoise(denoiser, request, x_0, group, observe, after_step=flip)


def sign_of_zero(denoiser: Any, request: Any, x_0: Tensor, group: Any, observe: Any) -> Tensor:
    """Leaves +0.0 on rank 0 and -0.0 on rank 1."""

    def zero(step: int, x_t: Tensor) -> Tensor:
        return _set_bits(x_t, (0, 2), -(2**31) if group.rank else 0) if step == 48 else x_t

    return denoise(denoiser, request, x_0, group, observe, after_step=zero)


def nan_payload(denoiser: Any, request: Any, x_0: Tensor, group: Any, observe: Any) -> Tensor:
    """Leaves NaNs of different payloads on the two ranks."""

    def poison(step: int, x_t: Tensor) -> Tensor:
        return _set_bits(x_t, (1, 1), 0x7FC00000 + group.rank) if step == 48 else x_t

    return denoise(denoiser, request, x_0, group, observe, after_step=poison)


def no_initial_broadcast(*loop: Any) -> Tensor:
    return denoise(*loop, share=False)


def reversed_gather(denoiser: Any, request: Any, x_0: Tensor, group: Any, observe: Any) -> Tensor:
    """Reads the gathered branches in the wrong order on rank 1."""

    def gather(v_t: Tensor) -> list[Tensor]:
        gathered: list[Tensor] = group.all_gather(v_t)
        return gathered[::-1] if group.rank == 1 else gathered

    return denoise(denoiser, request, x_0, group, observe, gather=gather)


def extra_broadcast(denoiser: Any, request: Any, x_0: Tensor, group: Any, observe: Any) -> Tensor:
    """Broadcasts ``x_t`` once more, after step 3."""

    def send(step: int, x_t: Tensor) -> Tensor:
        return group.broadcast(x_t) if step == 3 else x_t

    return denoise(denoiser, request, x_0, group, observe, after_step=send)


def cache_write(denoiser: Any, request: Any, x_0: Tensor, group: Any, observe: Any) -> Tensor:
    """Writes into the gen branch's cache on rank 0 during step 4."""

    def write(step: int, x_t: Tensor) -> Tensor:
        if step == 4 and group.rank == 0:
            denoiser.contexts["gen"].values[1, 0, 2] += 1.0
        return x_t

    return denoise(denoiser, request, x_0, group, observe, before_step=write)


def never_gathers(denoiser: Any, request: Any, x_0: Tensor, group: Any, observe: Any) -> Tensor:
    """Evaluates every branch on every rank: right, and nothing runs in parallel."""
    step = -1

    def count(at: int, x_t: Tensor) -> Tensor:
        nonlocal step
        step = at
        return x_t

    def gather(v_t: Tensor) -> list[Tensor]:
        others = {b: denoiser.velocity(x_now, step, b) for b in request.branches if b != request.branches[group.rank]}
        return [others.get(branch, v_t) for branch in request.branches]

    x_now = x_0

    def remember(at: int, x_t: Tensor) -> Tensor:
        nonlocal x_now
        x_now = x_t
        return count(at, x_t)

    return denoise(denoiser, request, x_0, group, observe, gather=gather, before_step=remember)


def shows_another(denoiser: Any, request: Any, x_0: Tensor, group: Any, observe: Any) -> Tensor:
    """Goes on with an ``x_t`` other than the one it shows, on every rank alike."""
    return denoise(denoiser, request, x_0, group, observe, before_step=lambda step, x_t: x_t * 1.5)


def raises_on_rank_1(denoiser: Any, request: Any, x_0: Tensor, group: Any, observe: Any) -> Tensor:
    def fail(step: int, x_t: Tensor) -> Tensor:
        if step == 6 and group.rank == 1:
            raise RuntimeError("the scheduler ran out of steps")
        return x_t

    return denoise(denoiser, request, x_0, group, observe, before_step=fail)


def sleeps_on_rank_1(denoiser: Any, request: Any, x_0: Tensor, group: Any, observe: Any) -> Tensor:
    def sleep(step: int, x_t: Tensor) -> Tensor:
        if step == 6 and group.rank == 1:
            time.sleep(1e6)
        return x_t

    return denoise(denoiser, request, x_0, group, observe, before_step=sleep)


def exits_on_rank_1(denoiser: Any, request: Any, x_0: Tensor, group: Any, observe: Any) -> Tensor:
    def leave(step: int, x_t: Tensor) -> Tensor:
        if step == 6 and group.rank == 1:
            os._exit(7)
        return x_t

    return denoise(denoiser, request, x_0, group, observe, before_step=leave)


def calls_sys_exit(denoiser: Any, request: Any, x_0: Tensor, group: Any, observe: Any) -> Tensor:
    sys.exit(0)


def wrong_shape(*loop: Any) -> Tensor:
    return denoise(*loop)[:-1]


def returns_nothing(*loop: Any) -> None:
    denoise(*loop)


def forgets_observe(denoiser: Any, request: Any, x_0: Tensor, group: Any, observe: Any) -> Tensor:
    return denoise(denoiser, request, x_0, group, lambda step, x_t: None)


def observes_twice(denoiser: Any, request: Any, x_0: Tensor, group: Any, observe: Any) -> Tensor:
    def twice(step: int, x_t: Tensor) -> None:
        observe(step, x_t)
        observe(step, x_t)

    return denoise(denoiser, request, x_0, group, twice)


def observes_half(denoiser: Any, request: Any, x_0: Tensor, group: Any, observe: Any) -> Tensor:
    return denoise(denoiser, request, x_0, group, lambda step, x_t: observe(step, x_t.to(torch.float16)))


def wrong_signature(denoiser: Any, request: Any) -> None:
    del denoiser, request


NOT_A_LOOP = 3


def another_each_time(denoiser: Any, request: Any, x_0: Tensor, group: Any, observe: Any) -> Tensor:
    """Ends otherwise each time it runs in a process, on every rank alike."""
    runs = int(os.environ.get("RUNS", "0")) + 1
    os.environ["RUNS"] = str(runs)
    last = len(request.schedule.timesteps) - 1
    return denoise(
        denoiser, request, x_0, group, observe, after_step=lambda step, x_t: x_t + runs if step == last else x_t
    )
