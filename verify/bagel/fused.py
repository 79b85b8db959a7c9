"""RMSNorm and rotary embedding on a GPU in fewer passes over memory, with the bits of the plain formulas.

The sum over a row is left to ``torch.mean``, whose order of summation is its own; a kernel makes the squares that it
reads, and another makes everything after it. What is left is one number at a time, and every step rounds as PyTorch's
operation does: products and sums are not fused, and half-precision values are rounded to nearest, ties to even.
Before a device's first use the kernels are held to the plain formulas on every finite value of the dtype; where a bit
differs, or Triton is missing or cannot compile, the plain formulas serve.
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

PLAIN = "plain"
FUSED = "fused"
_HALF = (torch.bfloat16, torch.float16)
_BLOCK = 1024


def serves(x: Tensor) -> bool:
    """Whether the kernels take ``x``. While a mode looks at every operator they do not, since it cannot see them."""
    return (
        x.is_cuda
        and x.dtype in _HALF
        and x.is_contiguous()
        and x.numel() > 0
        and not is_in_torch_dispatch_mode()
        and state(x.device, x.dtype) == FUSED
    )


@lru_cache(maxsize=8)
def state(device: torch.device, dtype: torch.dtype) -> str:
    """``fused``, or ``plain`` and the reason. Part of a trace's environment."""
    if device.type != "cuda" or dtype not in _HALF:
        return PLAIN
    if importlib.util.find_spec("triton") is None:
        return f"{PLAIN}: triton is not installed"
    try:
        wrong = disagreement(device, dtype)
    except Exception as error:  # Whatever a compiler says, the plain formulas serve.
        return f"{PLAIN}: {type(error).__name__}"
    return FUSED if wrong is None else f"{PLAIN}: {wrong}"


def disagreement(device: torch.device, dtype: torch.dtype) -> str | None:
    """The first operation whose kernel gives other bits than its plain formula, on every finite value of ``dtype``."""
    from verify.bagel import arithmetic
    from verify.bits import same_bits

    patterns = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    values = patterns[patterns.isfinite()]
    generator = torch.Generator().manual_seed(0)
    # Every value once among its neighbours in size, and once among others: rows whose norm hides it, and rows it rules.
    shuffled = torch.cat([values, values[torch.randperm(len(values), generator=generator)]])
    for size in (128, 16):
        x = shuffled[: len(shuffled) // (4 * size) * 4 * size].view(-1, 4, size).to(device)
        weight = torch.randn(size, generator=generator).to(device, dtype)
        rotation = arithmetic.rotation_at(torch.tensor([77], device=device), size, 1e6, dtype)
        for eps in (1e-6, 1e-5):
            if not same_bits(rms_norm(x, weight, eps), arithmetic.plain_rms_norm(x, weight, eps)):
                return f"rms_norm over {size} has other bits"
            plain = arithmetic.plain_norm_and_rotate(x, weight, eps, rotation, wide=True)
            if not same_bits(norm_and_rotate(x, weight, eps, rotation), plain):
                return f"norm_and_rotate over {size} has other bits"
    return None


def rms_norm(x: Float[Tensor, "... size"], weight: Float[Tensor, " size"], eps: float) -> Float[Tensor, "... size"]:
    """:func:`verify.bagel.arithmetic.rms_norm` by kernels."""
    out = torch.empty_like(x)
    _launch(_kernels()["norm"], x, _mean_of_squares(x), weight, out, x.numel(), eps, SIZE=x.shape[-1])
    return out


def norm_and_rotate(
    x: Float[Tensor, "n heads d"], weight: Float[Tensor, " d"], eps: float, rotation: tuple[Tensor, Tensor]
) -> Float[Tensor, "n heads d"]:
    """:func:`verify.bagel.arithmetic.norm_and_rotate` by kernels, for a wide pass at one position."""
    out = torch.empty_like(x)
    cos, sin = rotation
    _launch(
        _kernels()["norm_and_rotate"], x, _mean_of_squares(x), weight, cos, sin, out, x.numel(), eps, SIZE=x.shape[-1]
    )
    return out


def _mean_of_squares(x: Float[Tensor, "... size"]) -> Float[Tensor, "... 1"]:
    squares = torch.empty_like(x, dtype=torch.float32)
    _launch(_kernels()["square"], x, squares, x.numel())
    return squares.mean(-1, keepdim=True)


def _launch(kernel: Any, *arguments: Any, **constants: int) -> None:
    count = arguments[0].numel()
    # A product and a sum in one rounding would be other bits than PyTorch's.
    kernel[(-(-count // _BLOCK),)](*arguments, **constants, BLOCK=_BLOCK, enable_fp_fusion=False)


@lru_cache(maxsize=1)
def _kernels() -> dict[str, Any]:
    from verify.bagel import kernels

    return {"square": kernels.square, "norm": kernels.norm, "norm_and_rotate": kernels.norm_and_rotate}
