"""Norms, rotary embedding and SiLU on a GPU in fewer passes over memory, with the bits of the plain formulas.

The sum over a row is left to ``torch.mean``, whose order of summation is its own; a kernel makes the squares that it
reads, and another makes everything after it. What is left is one number at a time, and every step rounds as PyTorch's
operation does: products and sums are not fused, and half-precision values are rounded to nearest, ties to even.
Before its first use on a device each operation is held to its plain formula on every finite value of the dtype. Where a
bit differs, or Triton is missing or cannot compile, the plain formula serves.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

RMS_NORM, NORM_AND_ROTATE, SILU_TIMES = OPERATIONS = ("rms_norm", "norm_and_rotate", "silu_times")
_HALF = (torch.bfloat16, torch.float16)
_BLOCK = 1024


def serves(operation: str, x: Tensor) -> bool:
    """Whether a kernel takes ``x``. While a mode looks at every operator none does, since it could not see them."""
    return (
        x.is_cuda
        and x.dtype in _HALF
        and x.is_contiguous()
        and x.numel() > 0
        and not is_in_torch_dispatch_mode()
        and operation in equal(x.device, x.dtype)
    )


def told(device: torch.device, dtype: torch.dtype) -> str:
    """Which operations kernels serve, and why they do not serve the others: part of a trace's environment."""
    found = equal(device, dtype)
    missing = "" if found else "none: " + _obstacle(device, dtype)
    return ", ".join(name for name in OPERATIONS if name in found) or missing


@lru_cache(maxsize=8)
def equal(device: torch.device, dtype: torch.dtype) -> frozenset[str]:
    """The operations whose kernels have been shown to give the plain formulas' bits here."""
    if _obstacle(device, dtype):
        return frozenset()
    found = set()
    for name in OPERATIONS:
        try:
            if _agrees(name, device, dtype):
                found.add(name)
        except Exception:  # Whatever a compiler says, the plain formula serves.
            continue
    return frozenset(found)


def _obstacle(device: torch.device, dtype: torch.dtype) -> str:
    """Why no kernel is tried; empty if they are."""
    if device.type != "cuda" or dtype not in _HALF:
        return "they serve half precision on a GPU"
    return "" if importlib.util.find_spec("triton") else "triton is not installed"


def _agrees(operation: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a kernel and its plain formula have the same bits on every finite value of ``dtype``."""
    from verify.bits import same_bits

    return all(same_bits(fused(), plain()) for fused, plain in _trials(operation, device, dtype))


Trial = tuple[Callable[[], Tensor], Callable[[], Tensor]]


def _trials(operation: str, device: torch.device, dtype: torch.dtype) -> Iterator[Trial]:
    """Pairs of a kernel and its plain formula on the same operands."""
    from verify.bagel import arithmetic

    patterns = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    values = patterns[patterns.isfinite()]
    generator = torch.Generator().manual_seed(0)
    mixed = values[torch.randperm(len(values), generator=generator)]
    # Every value once among its neighbours in size, and once among others: rows that it rules, and rows that hide it.
    operand = torch.cat([values, mixed]).to(device)
    if operation == SILU_TIMES:
        other = torch.randn(len(operand), generator=generator).to(device, dtype)
        for up in (other, operand.flip(0)):
            yield lambda up=up: silu_times(operand, up), lambda up=up: arithmetic.plain_silu_times(operand, up)  # type: ignore[misc]
        return
    for size in (128, 16):
        x = operand[: len(operand) // (4 * size) * 4 * size].view(-1, 4, size)
        weight = torch.randn(size, generator=generator).to(device, dtype)
        rotation = arithmetic.rotation_at(torch.tensor([77], device=device), size, 1e6, dtype)
        for eps in (1e-6, 1e-5):
            if operation == RMS_NORM:
                of = (x, weight, eps)
                yield lambda of=of: rms_norm(*of), lambda of=of: arithmetic.plain_rms_norm(*of)  # type: ignore[misc]
            else:
                at = (x, weight, eps, rotation)
                yield (
                    lambda at=at: norm_and_rotate(*at),  # type: ignore[misc]
                    lambda at=at: arithmetic.plain_norm_and_rotate(*at, wide=True),  # type: ignore[misc]
                )


def rms_norm(x: Float[Tensor, "... size"], weight: Float[Tensor, " size"], eps: float) -> Float[Tensor, "... size"]:
    """:func:`verify.bagel.arithmetic.rms_norm` by kernels."""
    out = torch.empty_like(x)
    _launch("norm", x, _mean_of_squares(x), weight, out, x.numel(), eps, SIZE=x.shape[-1])
    return out


def norm_and_rotate(
    x: Float[Tensor, "n heads d"], weight: Float[Tensor, " d"], eps: float, rotation: tuple[Tensor, Tensor]
) -> Float[Tensor, "n heads d"]:
    """:func:`verify.bagel.arithmetic.norm_and_rotate` by kernels, for a wide pass at one position."""
    out = torch.empty_like(x)
    cos, sin = rotation
    _launch("norm_and_rotate", x, _mean_of_squares(x), weight, cos, sin, out, x.numel(), eps, SIZE=x.shape[-1])
    return out


def silu_times(gate: Float[Tensor, "*shape"], up: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """:func:`verify.bagel.arithmetic.silu_times` by a kernel."""
    out = torch.empty_like(gate)
    _launch("silu_times", gate, up, out, gate.numel())
    return out


def _mean_of_squares(x: Float[Tensor, "... size"]) -> Float[Tensor, "... 1"]:
    squares = torch.empty_like(x, dtype=torch.float32)
    _launch("square", x, squares, x.numel())
    return squares.mean(-1, keepdim=True)


def _launch(kernel: str, *arguments: Any, **constants: int) -> None:
    count = arguments[0].numel()
    # A product and a sum in one rounding would be other bits than PyTorch's.
    grid = (-(-count // _BLOCK),)
    _kernels()[kernel][grid](*arguments, **constants, BLOCK=_BLOCK, enable_fp_fusion=False)


@lru_cache(maxsize=1)
def _kernels() -> dict[str, Any]:
    from verify.bagel import kernels

    return vars(kernels)
