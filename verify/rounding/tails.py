"""Tails of the beta distribution, far out: probabilities below 1e-12 are asked for, without a library that has them.

With energies of ``2a`` and ``2b`` degrees of freedom, ``A / (A + B)`` has a Beta(a, b) distribution, and the ratio of
their means an F distribution (Johnson, Kotz and Balakrishnan, Continuous Univariate Distributions 2, chapter 27).
"""

from __future__ import annotations

import math

_TINY = 1e-300
_MOST_TERMS = 20_000


def beta_above(x: float, a: float, b: float) -> float:
    """The probability that a Beta(a, b) variable lies above ``x``."""
    if x <= 0.0:
        return 1.0
    if x >= 1.0:
        return 0.0
    scale = math.exp(a * math.log(x) + b * math.log1p(-x) - (math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)))
    # The continued fraction converges fast on one side of the mean; the other is its mirror image.
    if x > (a + 1) / (a + b + 2):
        return min(1.0, scale * _fraction(1 - x, b, a) / b)
    return max(0.0, 1.0 - scale * _fraction(x, a, b) / a)


def _fraction(x: float, a: float, b: float) -> float:
    """Of the incomplete beta function, by Lentz's method (DLMF 8.17.22)."""
    c, d = 1.0, 1.0 / _away_from_zero(1.0 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, _MOST_TERMS):
        for coefficient in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1.0 / _away_from_zero(1.0 + coefficient * d)
            c = _away_from_zero(1.0 + coefficient / c)
            value *= c * d
        if abs(c * d - 1.0) < 1e-12:
            return value
    return value


def _away_from_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY


def ratio_above(ratio: float, freedom: float, of: float) -> float:
    """The probability that a mean energy of ``freedom`` degrees exceeds one of ``of`` degrees ``ratio`` times."""
    if math.isnan(ratio) or ratio == math.inf:
        return 0.0
    return beta_above(freedom * ratio / (freedom * ratio + of), freedom / 2, of / 2)


def ratio_at(probability: float, freedom: float, of: float) -> float:
    """The ratio that :func:`ratio_above` gives ``probability`` to."""
    low, high = 0.0, 2.0
    while ratio_above(high, freedom, of) > probability and high < 1e30:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if ratio_above(middle, freedom, of) > probability else (low, middle)
    return high


def beta_at(probability: float, a: float, b: float) -> float:
    """What a Beta(a, b) variable exceeds with ``probability``."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if beta_above(middle, a, b) > probability else (low, middle)
    return high


def at_least(count: int, of: int, probability: float) -> float:
    """The probability that ``count`` or more of ``of`` independent events happen, each with ``probability``."""
    return 1.0 if count <= 0 else 1.0 - beta_above(probability, count, of - count + 1)
