"""The combine with one thing wrong, each as a plausible change would make it. The fuzzer must catch every one.

A mutant is built for a rank: what is wrong on one rank only is right on the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.linalg import vector_norm

from verify.bits import bits_of
from verify.combine import EPS, combine_cfg

Combine = Callable[..., Tensor]
_WRONG_RANK = 1
_LARGE = 16384


@dataclass(frozen=True)
class Mutant:
    """A wrong combine.

    Attributes:
        what: is wrong, in words.
        build: makes it for a rank.
    """

    what: str
    build: Callable[[int], Combine]


def variant(
    gen: Tensor,
    text: Tensor,
    img: Tensor | None,
    text_scale: float,
    img_scale: float,
    renorm_type: str,
    renorm_min: float,
    *,
    eps: float = EPS,
    most: float | None = 1.0,
    norm: Callable[..., Tensor] = vector_norm,
    dim: int = -1,
    extrapolate: Callable[[Tensor, float, Tensor], Tensor] | None = None,
) -> Tensor:
    """The combine with parts that can be replaced; as it stands, bit for bit ``combine_cfg``."""
    step = extrapolate or (lambda base, scale, towards: base + scale * (towards - base))

    def renormed(guided: Tensor) -> Tensor:
        axis = None if renorm_type == "global" else dim
        norms = [norm(x, dim=axis, keepdim=axis is not None) for x in (gen, guided)]
        factor = norms[0] / (norms[1] + eps) if eps else norms[0] / norms[1]
        return (guided * factor.clamp(min=renorm_min, max=most)).to(gen.dtype)

    guided = step(text, text_scale, gen)
    if renorm_type == "text_channel":
        guided = renormed(guided)
    if img is not None:
        guided = step(img, img_scale, guided)
    return guided if renorm_type == "text_channel" else renormed(guided)


def _everywhere(combine: Combine) -> Callable[[int], Combine]:
    return lambda rank: combine


def _with(**parts: Any) -> Callable[[int], Combine]:
    return _everywhere(lambda *arguments: variant(*arguments, **parts))


def _on_one_rank(combine: Combine) -> Callable[[int], Combine]:
    return lambda rank: combine if rank == _WRONG_RANK else combine_cfg


def _afterwards(change: Callable[[Tensor], Tensor]) -> Combine:
    """The right result, then ``change``."""
    return lambda *arguments: change(combine_cfg(*arguments))


def _norm_in_float32(x: Tensor, dim: int | None, keepdim: bool) -> Tensor:
    norm: Tensor = vector_norm(x.float(), dim=dim, keepdim=keepdim)
    return norm


def _norm_in_bfloat16(x: Tensor, dim: int | None, keepdim: bool) -> Tensor:
    norm: Tensor = vector_norm(x.bfloat16(), dim=dim, keepdim=keepdim)
    return norm.to(x.dtype)


def _shuffled_norm(x: Tensor, dim: int | None, keepdim: bool) -> Tensor:
    """Squares summed from the last to the first, one chunk after another: another order, as atomics would give."""
    wide = x if x.dtype is torch.float64 else x.float()
    squares = (wide.flip(-1) if dim == -1 else wide.flatten().flip(0)) ** 2
    total = squares.new_zeros(*squares.shape[:-1], 1)
    for chunk in squares.split(3, dim=-1):
        total = total + chunk.sum(-1, keepdim=True)
    root = total.sqrt().to(x.dtype)
    return root if dim == -1 else root.squeeze(-1)


def _swapped(gen: Tensor, text: Tensor, img: Any, text_scale: float, img_scale: float, *rest: Any) -> Tensor:
    return combine_cfg(gen, text, img, img_scale, text_scale, *rest)


def _no_image(gen: Tensor, text: Tensor, img: Any, *rest: Any) -> Tensor:
    return combine_cfg(gen, text, None, *rest)


def _in_place(gen: Tensor, text: Tensor, img: Any, text_scale: float, *rest: Any) -> Tensor:
    """Right once: the difference is kept where gen was."""
    out = combine_cfg(gen, text, img, text_scale, *rest)
    if gen.numel() and 0 not in gen.stride():
        gen.sub_(text)
    return out


def _large_only(gen: Tensor, *rest: Any) -> Tensor:
    if gen.numel() < _LARGE:
        return combine_cfg(gen, *rest)
    return variant(gen, *rest, extrapolate=lambda base, scale, towards: towards + (scale - 1) * (towards - base))


def _half_renorm_min(gen: Tensor, text: Tensor, img: Any, a: float, b: float, kind: str, renorm_min: float) -> Tensor:
    return combine_cfg(gen, text, img, a, b, kind, renorm_min / 2)


def _through_bfloat16(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16).to(x.dtype)


def _zero_sign(x: Tensor) -> Tensor:
    return torch.where(x == 0, -x, x)


def _one_ulp(x: Tensor) -> Tensor:
    """One finite element is its neighbour."""
    if x.numel():
        bits = bits_of(x.contiguous()).flatten().clone()
        bits[len(bits) // 2] ^= 1
        x = bits.view(x.dtype).view(x.shape)
    return x


MUTANTS = {
    "eps dropped": Mutant("|gen| / |guided|", _with(eps=0.0)),
    "clamp max dropped": Mutant("the factor may exceed 1", _with(most=None)),
    "norm in float32": Mutant(
        "norms and factor stay in float32, the result is cast back", _with(norm=_norm_in_float32)
    ),
    "norm in bfloat16": Mutant("norms are taken in bf16", _with(norm=_norm_in_bfloat16)),
    "norm over tokens": Mutant("channel norms run over tokens", _with(dim=0)),
    "scales swapped": Mutant("the text branch gets the image's scale", _everywhere(_swapped)),
    "image ignored": Mutant("guidance by the text alone", _everywhere(_no_image)),
    "writes to gen": Mutant("the difference overwrites gen", _everywhere(_in_place)),
    "shuffled sum on one rank": Mutant(
        "norms sum in another order, as atomics do", _on_one_rank(lambda *a: variant(*a, norm=_shuffled_norm))
    ),
    "bf16 on one rank": Mutant("the result passes through bf16", _on_one_rank(_afterwards(_through_bfloat16))),
    "sign of zero": Mutant("+0 becomes -0 and the reverse, everywhere", _everywhere(_afterwards(_zero_sign))),
    "sign of zero on one rank": Mutant("likewise on one rank", _on_one_rank(_afterwards(_zero_sign))),
    "one ULP on one rank": Mutant("the lowest bit of one element", _on_one_rank(_afterwards(_one_ulp))),
    "other formula when large": Mutant(
        f"gen + (s - 1)(gen - text) from {_LARGE} elements on", _everywhere(_large_only)
    ),
    "renorm_min halved": Mutant("only wrong when renorm_min > 0", _everywhere(_half_renorm_min)),
}
