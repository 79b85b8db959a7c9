"""Classifier-free guidance, as mathematics."""

from __future__ import annotations

from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

# Bagel adds it to the norm that it divides by.
EPS = 1e-8

# Float64 of any shape. NumPy's own annotation, because the type checker follows its arithmetic.
Array = NDArray[np.float64]
Number = TypeVar("Number")


class CombineArithmetic(Protocol[Number]):
    """The operations of the combine over some kind of number: plain float64, or float64 with an error beside it."""

    def extrapolate(self, base: Number, scale: float, towards: Number) -> Number:
        """``base + scale * (towards - base)``."""
        ...

    def renorm_factor(self, gen: Number, guided: Number, per_token: bool, least: float) -> Number:
        """``|gen| / (|guided| + EPS)`` clamped to ``[least, 1]``: ``(tokens, 1)``, or ``(1, 1)`` for all tokens."""
        ...

    def times(self, a: Number, b: Number) -> Number:
        """The product of each element."""
        ...


class Float64Combine:
    """The combine's operations in float64."""

    def extrapolate(self, base: Array, scale: float, towards: Array) -> Array:
        """``base + scale * (towards - base)``."""
        return base + scale * (towards - base)

    def renorm_factor(self, gen: Array, guided: Array, per_token: bool, least: float) -> Array:
        """``|gen| / (|guided| + EPS)`` clamped to ``[least, 1]``."""
        axes = -1 if per_token else None
        norms = [np.sqrt(np.sum(x**2, axis=axes, keepdims=True)) for x in (gen, guided)]
        return np.clip(norms[0] / (norms[1] + EPS), least, 1.0)

    def times(self, a: Array, b: Array) -> Array:
        """The product of each element."""
        return a * b


def combine(
    gen: Number,
    text: Number,
    img: Number | None,
    text_scale: float,
    img_scale: float,
    renorm_type: str,
    renorm_min: float,
    arithmetic: CombineArithmetic[Number],
) -> Number:
    """The guided velocity of ``(tokens, channels)`` branch velocities.

    Source: Bagel, ``modeling/bagel/bagel.py``, ``_forward_flow``: ``text_channel`` renorms between the two guidances,
    each token by itself; ``channel`` (each token) and ``global`` (all at once) renorm at the end.

    Raises:
        ValueError: an unknown ``renorm_type``.
    """
    if renorm_type not in ("global", "channel", "text_channel"):
        raise ValueError(f"renorm_type is {renorm_type!r}, expected global, channel or text_channel")
    guided = arithmetic.extrapolate(text, text_scale, gen)
    if renorm_type == "text_channel":
        guided = arithmetic.times(guided, arithmetic.renorm_factor(gen, guided, True, renorm_min))
    if img is not None:
        guided = arithmetic.extrapolate(img, img_scale, guided)
    if renorm_type == "text_channel":
        return guided
    return arithmetic.times(guided, arithmetic.renorm_factor(gen, guided, renorm_type == "channel", renorm_min))
