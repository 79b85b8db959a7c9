"""The combine's operations on values with a rigorous error beside them.

Errors follow the computation and add up (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.3).
Products of errors are kept, so nothing is a first-order estimate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from verify.oracle.combine import EPS, Array
from verify.oracle.formats import FLOAT64, Format

Mask = NDArray[np.bool_]

# The oracle's own arithmetic, whose errors count as well.
_OWN = FLOAT64


@dataclass(frozen=True)
class Ball:
    """The oracle's value and how far PyTorch's may be from it.

    Attributes:
        value: float64.
        error: infinite where nothing is known; 0 where PyTorch has the very same infinity or NaN.
    """

    value: Array
    error: Array

    @classmethod
    def exactly(cls, value: Array) -> Ball:
        """What PyTorch and the oracle are both given."""
        return cls(value, np.zeros_like(value))

    @property
    def surely_nan(self) -> Mask:
        """Where PyTorch's value is a NaN, and so is whatever is computed from it."""
        sure: Mask = np.isnan(self.value) & (self.error == 0)
        return sure

    @property
    def known_nonzero(self) -> Mask:
        """Where PyTorch's value is not zero, or exactly the oracle's."""
        known: Mask = (np.abs(self.value) > self.error) | (self.error == 0) | np.isnan(self.value)
        return known


class CombineBound:
    """The combine's operations, for velocities of one format.

    Args:
        form: that format.
        failure_probability: 0 for a bound on any order of summation. Above 0, the roundings of a sum are taken for
            independent variables of mean zero, and the bound fails with at most this probability: then ``l * sqrt(n)``
            of them count instead of n, where ``l^2 = 2 log(2 sums / probability)`` (Hoeffding; Higham and Mary, SIAM J.
            Sci. Comput. 41, 2019).
    """

    def __init__(self, form: Format, failure_probability: float = 0.0) -> None:
        self.form = form
        self._probability = failure_probability
        self._c = form.compute.unit
        stored_anew = form.compute is not form
        # Computed, then stored: (1 + c)(1 + u) - 1. One rounding only where a format computes in itself.
        self._unit = self._c + form.unit * (1 + self._c) if stored_anew else self._c
        # Below the normal range: half the least subnormal each, but float64 has no half of its own.
        halves = (form.compute.least / 2, form.least / 2 if stored_anew else 0.0, _OWN.least)
        self._tiny = 2 * _OWN.least + sum(halves)

    def extrapolate(self, base: Ball, scale: float, towards: Ball) -> Ball:
        """A difference, its product with the scale, a sum: each computed, then stored."""
        apart = self._sum(Ball(-base.value, base.error), towards)
        return self._sum(base, self.times(self._scale(scale), apart))

    def times(self, a: Ball, b: Ball) -> Ball:
        """A product of each element. An infinity times what may or may not be zero is unknown."""
        error = np.abs(a.value) * b.error + np.abs(b.value) * a.error + a.error * b.error
        special = ~np.isfinite(a.value) | ~np.isfinite(b.value)
        return self._rounded(a.value * b.value, error + self._tiny, special & a.known_nonzero & b.known_nonzero, a, b)

    def renorm_factor(self, gen: Ball, guided: Ball, per_token: bool, least: float) -> Ball:
        """Norms, their quotient, and a clamp that keeps whatever is no NaN within ``[least, 1]``.

        What PyTorch divides by is at least the 1e-8 as it rounds it, and that is 0 in float16.
        """
        above, below = self._norm(gen, per_token), self._norm(guided, per_token)
        # Added to a tensor, the 1e-8 may first be rounded to the stored format, to the computing one, or to neither.
        eps_error = self.form.unit * EPS + self.form.least
        shifted = self._rounded(
            below.value + EPS, below.error + eps_error + self._tiny, ~np.isfinite(below.value), below
        )
        floor = max((EPS - eps_error) * (1 - self._unit) - self._tiny, 0.0)
        lowest = np.maximum(shifted.value - shifted.error, floor)
        highest = above.value + above.error
        # Eight roundings cover the oracle's own in these two lines.
        slack = self._unit + 8 * _OWN.unit
        low = np.maximum(above.value - above.error, 0) / (shifted.value + shifted.error) * (1 - slack) - self._tiny
        high = highest / lowest * (1 + slack) + self._tiny

        quotient = above.value / shifted.value
        carried = (above.error + quotient * shifted.error) / lowest
        error = carried + self._unit * (quotient + carried) + self._tiny + _OWN.unit * quotient
        error = np.where(np.isinf(shifted.value), 0.0, error)  # A finite norm by an infinite one is 0 exactly.
        zero_by_zero = (lowest <= 0) & (above.value - above.error <= 0)
        lost = np.isinf(above.error) | np.isinf(shifted.error) | zero_by_zero
        lost &= ~(above.surely_nan | shifted.surely_nan)
        return self._clamped(quotient, np.where(np.isnan(error), np.inf, error), low, high, least, lost)

    def _clamped(self, value: Array, error: Array, low: Array, high: Array, least: float, lost: Mask) -> Ball:
        """``value`` within ``[least, 1]``, given what PyTorch's can be off by and lies between."""
        moved = np.where(low >= 1.0, 0.0, np.minimum(error, 1.0 - least))
        if least not in (0.0, 1.0):
            rounded = self.form.unit * least + self.form.least
            moved = np.where(high <= least, 0.0, moved)
            moved = np.where(low <= least + rounded, np.maximum(moved, rounded), moved)
        moved = np.where(np.isnan(value), 0.0, moved)  # It passes through a clamp.
        return Ball(np.clip(value, least, 1.0), np.where(lost, np.inf, moved))

    def _norm(self, x: Ball, per_token: bool) -> Ball:
        """The Euclidean norm, its n terms summed in any order, fused with their products or not.

        Such a sum errs by at most n roundings (Jeannerod and Rump, SIAM J. Matrix Anal. Appl. 34, 2013), and by half a
        least subnormal for each product that underflows.
        """
        axes = -1 if per_token else None
        norm = np.sqrt(np.sum(x.value**2, axes, keepdims=True))
        carried = _euclidean(x.error, axes)
        terms = x.value.shape[-1] if per_token else x.value.size
        present = np.sum((x.value != 0) | (x.error > 0), axes, keepdims=True)
        roundings = self._roundings(terms, norm.size)
        own = _norm_error(norm, norm, roundings, present, _OWN)
        size, lower = norm + own + carried, np.maximum(norm - own - carried, 0)
        error = own + carried + _norm_error(size, lower, roundings, present, self.form.compute)
        sum_of_squares = size**2 * (1 + terms * self._c) + present * self.form.compute.least
        error = np.where(sum_of_squares * (1 + self._c) > self.form.compute.largest, np.inf, error)
        special = ~np.all(np.isfinite(x.value), axis=axes, keepdims=True)
        unknown = np.any(np.isinf(x.error), axis=axes, keepdims=True)
        unknown &= ~np.any(x.surely_nan, axis=axes, keepdims=True)
        whole = Ball(norm, np.where(unknown, np.inf, 0.0))
        stored = np.where(present > 0, self._tiny, 0.0)
        return self._rounded(norm, error + stored, special, whole)

    def _roundings(self, terms: int, norms: int) -> float:
        """How many roundings of one size a sum of ``terms`` squares can add up to."""
        if self._probability == 0.0:
            return terms
        # Two norms, of gen and of guided, each computed by PyTorch and by the oracle.
        return min(terms, math.sqrt(terms * 2 * math.log(2 * 4 * max(norms, 1) / self._probability)))

    def _sum(self, a: Ball, b: Ball) -> Ball:
        """A sum of each element; it cannot underflow, because stored numbers are multiples of the least subnormal."""
        special = ~np.isfinite(a.value) | ~np.isfinite(b.value)
        return self._rounded(a.value + b.value, a.error + b.error, special, a, b)

    def _scale(self, scale: float) -> Ball:
        """A Python float becomes a number of the computing format."""
        value = np.float64(scale)
        rounded = value if self.form.compute is _OWN else np.float64(np.float32(scale))
        # An infinity stays one, but a finite scale that becomes one says nothing.
        error = np.abs(rounded - value) if np.isfinite(rounded) else np.inf if np.isfinite(value) else 0.0
        return Ball(np.atleast_2d(value), np.atleast_2d(error))

    def _rounded(self, value: Array, error: Array, special: Mask, *operands: Ball) -> Ball:
        """``value``, computed and stored, from operands that err by ``error`` together.

        Args:
            value: the oracle's.
            error: before rounding.
            special: where an operand is infinite or NaN and the result's kind follows from that.
            operands: where one of them is a NaN, so is the result; otherwise, where one is unknown, so is the result.
        """
        unknown = reduce(np.logical_or, (np.isinf(operand.error) for operand in operands))
        nan = reduce(np.logical_or, (operand.surely_nan for operand in operands))
        size = np.abs(value) + error
        total = error + self._unit * size + _OWN.unit * np.abs(value)
        # Written so that a NaN counts as too large.
        total = np.where(np.abs(value) + total <= self.form.largest, total, np.inf)
        return Ball(value, np.where(nan, 0.0, np.where(unknown, np.inf, np.where(special, 0.0, total))))


def _norm_error(size: Array, lower: Array, roundings: float, present: Array, form: Format) -> Array:
    """What ``sqrt(sum(x^2))``, summed in ``form``, errs by for a norm of at most ``size`` and at least ``lower``.

    From ``|sqrt(a+b) - sqrt(a)| = |b| / (sqrt(a+b) + sqrt(a))``, once for the relative and once for the absolute part.
    The rounding of the root itself is left to the caller.
    """
    relative = roundings * form.unit
    remaining = np.sqrt(max(1 - relative, 0.0))
    underflow = present * form.least
    absolute = np.minimum(np.sqrt(underflow), underflow / (lower * remaining))
    error: Array = size * relative / (1 + remaining) + np.where(present > 0, absolute, 0.0)
    return error


def _euclidean(x: Array, axes: int | None) -> Array:
    """The norm of non-negative numbers, scaled so that their squares do not underflow."""
    greatest = np.max(x, axes, keepdims=True, initial=0.0)
    scaled = np.divide(x, greatest, out=np.zeros_like(x), where=np.isfinite(greatest) & (greatest > 0))
    norm: Array = greatest * np.sqrt(np.sum(scaled**2, axes, keepdims=True))
    unknown: Array = np.where(np.isinf(greatest), np.inf, norm)
    return unknown
