"""What a padding rank evaluates has other bytes in guided steps, and everything else is the denoiser's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from verify.tasks.padding import PaddingDenoiser


class Inner:
    scale = 2.0

    def velocity(self, x_t: Tensor, step: int, branch: str, **asked: Any) -> Tensor:
        return x_t * self.scale


def test_other_bytes_in_guided_steps_alone() -> None:
    inner = Inner()
    denoiser = PaddingDenoiser(inner, (True, False))
    x_t = torch.tensor([1.0, -2.0])
    assert torch.equal(denoiser.velocity(x_t, 0, "cond"), torch.tensor([-1.0, 5.0]))
    assert torch.equal(denoiser.velocity(x_t, 1, "cond"), torch.tensor([2.0, -4.0]))
    assert torch.equal(denoiser.velocity(x_t, 2, "cond"), torch.tensor([2.0, -4.0]))


def test_it_is_the_denoiser_in_all_else() -> None:
    inner = Inner()
    denoiser: Any = PaddingDenoiser(inner, (True,))
    denoiser.scale = 3.0
    assert (denoiser.scale, inner.scale) == (3.0, 3.0)
    assert not hasattr(denoiser, "__wrapped__")
