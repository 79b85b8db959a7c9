"""The kernels of :mod:`verify.bagel.fused`: one program for each block of elements, one element at a time.

Only :mod:`verify.bagel.fused` imports this module, because Triton need not be installed.
"""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import libdevice


@triton.jit
def square(x, out, count, BLOCK: tl.constexpr):
    """``x * x`` in float32."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, value * value, mask=inside)


@triton.jit
def silu_times(gate, up, out, count, BLOCK: tl.constexpr):
    """``gate / (1 + exp(-gate))``, rounded to the dtype of ``gate``, then times ``up``."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    value = tl.load(gate + at, mask=inside, other=0.0).to(tl.float32)
    # Triton's own exponential and quotient are faster and less exact than PyTorch's.
    activated = tl.div_rn(value, 1.0 + libdevice.exp(-value)).to(gate.dtype.element_ty).to(tl.float32)
    product = activated * tl.load(up + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, product.to(gate.dtype.element_ty), mask=inside)


@triton.jit
def norm(x, mean, weight, out, count, eps, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """``x * rsqrt(mean + eps)``, rounded to the dtype of ``x``, then times ``weight``."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    root = tl.rsqrt(tl.load(mean + at // SIZE, mask=inside, other=1.0) + eps)
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) * root
    gain = tl.load(weight + at % SIZE, mask=inside, other=0.0).to(tl.float32)
    rounded = value.to(x.dtype.element_ty).to(tl.float32)
    tl.store(out + at, (rounded * gain).to(x.dtype.element_ty), mask=inside)


@triton.jit
def norm_and_rotate(x, mean, weight, cos, sin, out, count, eps, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Norm in float32, then each channel times a cosine plus its partner times a signed sine, rounded at the end."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    channel = at % SIZE
    other = (channel + SIZE // 2) % SIZE
    root = tl.rsqrt(tl.load(mean + at // SIZE, mask=inside, other=1.0) + eps)
    own = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) * root
    own = own * tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32)
    partner = tl.load(x + at - channel + other, mask=inside, other=0.0).to(tl.float32) * root
    partner = partner * tl.load(weight + other, mask=inside, other=0.0).to(tl.float32)
    turned = own * tl.load(cos + channel, mask=inside, other=0.0).to(tl.float32)
    turned = turned + partner * tl.load(sin + channel, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, turned.to(x.dtype.element_ty), mask=inside)
