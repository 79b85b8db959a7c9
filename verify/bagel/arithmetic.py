"""RMSNorm, rotary embedding and gated SiLU, rounded where Bagel rounds.

Every function is one formula in PyTorch's own operations, each of which rounds once to the dtype that it gives. On a
GPU a half-precision network takes :mod:`verify.bagel.fused` instead, whose results have the same bits in fewer passes
over memory.

Legend: N tokens, A heads, D head channels.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from verify.bagel import fused

# Cosines, and sines with the sign that each half of the channels takes.
Rotation = tuple[Float[Tensor, "#n 1 d"], Float[Tensor, "#n 1 d"]]


def rms_norm(x: Float[Tensor, "... size"], weight: Float[Tensor, " size"], eps: float) -> Float[Tensor, "... size"]:
    """``x / sqrt(mean(x^2) + eps)``, rounded to ``x``'s dtype, then times ``weight``."""
    if fused.serves(fused.RMS_NORM, x):
        return fused.rms_norm(x, weight, eps)
    return plain_rms_norm(x, weight, eps)


def plain_rms_norm(
    x: Float[Tensor, "... size"], weight: Float[Tensor, " size"], eps: float
) -> Float[Tensor, "... size"]:
    """:func:`rms_norm` in PyTorch's operations."""
    exact = x.to(exact_dtype(x.dtype))
    normalised = exact * torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + eps)
    return normalised.to(x.dtype) * weight


def norm_and_rotate(
    x: Float[Tensor, "n heads d"], weight: Float[Tensor, " d"], eps: float, rotation: Rotation, wide: bool
) -> Float[Tensor, "n heads d"]:
    """RMSNorm of each head's channels, then rotary embedding; the result has ``x``'s dtype.

    Args:
        x: queries or keys.
        weight: of the norm.
        eps: of the norm.
        rotation: of :func:`rotation_at`.
        wide: keeps everything between ``x`` and the result in float32, as a pass over latents does.
    """
    if wide and len(rotation[0]) == 1 and fused.serves(fused.NORM_AND_ROTATE, x):
        return fused.norm_and_rotate(x, weight, eps, rotation)
    return plain_norm_and_rotate(x, weight, eps, rotation, wide)


def plain_norm_and_rotate(
    x: Float[Tensor, "n heads d"], weight: Float[Tensor, " d"], eps: float, rotation: Rotation, wide: bool
) -> Float[Tensor, "n heads d"]:
    """:func:`norm_and_rotate` in PyTorch's operations."""
    operand = x.to(exact_dtype(x.dtype)) if wide else x
    return rotate(plain_rms_norm(operand, weight, eps), rotation).to(x.dtype)


def silu_times(gate: Float[Tensor, "n mlp"], up: Float[Tensor, "n mlp"]) -> Float[Tensor, "n mlp"]:
    """``gate / (1 + exp(-gate))``, rounded, then times ``up``."""
    if fused.serves(fused.SILU_TIMES, gate) and up.is_contiguous():
        return fused.silu_times(gate, up)
    return plain_silu_times(gate, up)


def plain_silu_times(gate: Float[Tensor, "*shape"], up: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """:func:`silu_times` in PyTorch's operations."""
    return F.silu(gate) * up


def rotate(x: Float[Tensor, "n heads d"], rotation: Rotation) -> Float[Tensor, "n heads d"]:
    """Rotary embedding (arXiv 2104.09864): channels i and i + d/2 of a head turn by one angle.

    Both products and their sum are rounded one by one. A sine's sign changes no rounding, so it is in ``rotation``.
    """
    cos, sin = rotation
    return x * cos + x.roll(x.shape[-1] // 2, -1) * sin


def rotation_at(positions: Int[Tensor, " n"], head_dim: int, theta: float, dtype: torch.dtype) -> Rotation:
    """What :func:`rotate` multiplies by, for a network of ``dtype``: computed in float32 or wider, then rounded to it.

    Channels i and i + d/2 of a head turn by ``position * (1 / theta^(2i/d))``.
    """
    frequencies = _frequencies(head_dim, theta, exact_dtype(dtype), positions.device)
    angles = positions.to(frequencies.dtype)[:, None, None] * frequencies
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    return torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)


@lru_cache(maxsize=8)
def _frequencies(head_dim: int, theta: float, dtype: torch.dtype, device: torch.device) -> Float[Tensor, " half"]:
    """Made on the CPU, because a GPU's power function may give other last bits."""
    exponents = torch.arange(0, head_dim, 2, dtype=dtype, device="cpu") / head_dim
    return (1.0 / theta**exponents).to(device)


def exact_dtype(dtype: torch.dtype) -> torch.dtype:
    """What a network of ``dtype`` computes norms and angles in: float32, or float64 when it is float64."""
    return torch.float64 if dtype is torch.float64 else torch.float32
