"""Random tensors in float64, and whether two of them are equal up to rounding."""

from __future__ import annotations

import torch
from torch import Tensor


def random(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers; the same for the same shape and seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(a: Tensor, b: Tensor, atol: float = 1e-12) -> bool:
    """Within what rounding in float64 explains."""
    return a.shape == b.shape and bool(((a - b).abs() <= atol).all())
