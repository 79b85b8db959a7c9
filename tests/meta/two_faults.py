"""A loop with two faults that have nothing to do with each other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from verify.loops import local
from verify.protocols import State


def twice(denoiser: Any, request: Any, x_0: Tensor, group: Any, observe: Any) -> Tensor:
    """One bit on rank 1 after step 7, one on rank 0 after step 30."""

    def flip(step: int, x_t: Tensor, state: State = None) -> None:
        if (step, group.rank) in ((7, 1), (30, 0)):
            x_t.view(torch.int32)[3, 5] ^= 1
        observe(step, x_t)

    return local(denoiser, request, x_0, group, flip)
