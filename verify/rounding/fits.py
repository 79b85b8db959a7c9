"""The distribution of energies under randomised rounding, fitted and tested.

An energy is a sum of squared deviations: of all of ``x_t``, of a token, of a channel, of an element. By first-order
perturbation a deviation is a sum of many small independent roundings, so that it is close to normal, and its energy to
a scaled chi-square of some degrees of freedom: few where the deviations move together, many where each moves by itself
(Satterthwaite, Biometrics Bulletin 2, 1946). The degrees are fitted to what K draws show. The fit is tested where it
matters, in the tail, and taken with fewer degrees, whose tails are heavier, until it is not refuted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from verify.rounding.tails import at_least, beta_at

Array = NDArray[np.float64]

# A fit is refuted where more draws lie above a level than chance puts there with this probability.
REFUTED = 0.01
_LEVELS = (0.05, 0.01, 1e-3, 1e-4)
_FEWER = (1.0, 0.8, 0.65, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05)
_ALONE = 3.09  # A unit that varies so many standard deviations more than all together is fitted by itself.


@dataclass(frozen=True)
class Fit:
    """How energies of one kind spread.

    Attributes:
        freedom: degrees of freedom of each unit's energy; NaN where every draw gave the same.
        pooled: those of all units together.
        draws: K.
        refuted: whether even the heaviest tail that was tried is lighter than what was drawn.
        levels: for each level that was looked at, how many draws lie above it and how many should.
    """

    freedom: Array
    pooled: float
    draws: int
    refuted: bool
    levels: tuple[tuple[float, int, float], ...]


def fitted(energies: Array) -> Fit:
    """The degrees of freedom of energies ``(draws, units)``.

    Each draw over the mean of its unit's K draws is K times a Beta variable, whatever the unit's scale: its variance
    gives the degrees, its quantiles the test.
    """
    draws = len(energies)
    mean = energies.mean(0)
    moving = mean > 0
    if not moving.any():
        return Fit(np.full(energies.shape[1], math.nan), math.nan, draws, False, ())
    relative = energies[:, moving] / mean[moving]
    spread = ((relative - 1) ** 2).mean(0)
    pooled = float(spread.mean())
    estimate = 2 * ((draws - 1) / max(pooled, 1e-12) - 1) / draws
    estimate = min(max(estimate, 0.05), 1e6)
    ordered = np.sort(relative, axis=None)
    levels: tuple[tuple[float, int, float], ...] = ()
    refuted = True
    for share in _FEWER:
        refuted, levels = _tested(ordered, estimate * share, draws)
        if not refuted:
            estimate *= share
            break
    # Units that vary far more than all together, as chance hardly lets them, keep their own fewer degrees.
    allowed = (1 - 2 / (9 * (draws - 1)) + _ALONE * math.sqrt(2 / (9 * (draws - 1)))) ** 3
    own = np.where(spread > allowed * pooled, pooled / np.maximum(spread, 1e-300), 1.0)
    freedom = np.full(energies.shape[1], math.nan)
    freedom[moving] = np.maximum(estimate * own, 0.05)
    return Fit(freedom, estimate, draws, refuted, levels)


def _tested(ordered: Array, freedom: float, draws: int) -> tuple[bool, tuple[tuple[float, int, float], ...]]:
    """Whether too many of the sorted values lie above the levels of a fit."""
    found = []
    refuted = False
    for level in _LEVELS:
        if level * ordered.size < 1:
            continue
        above = beta_at(level, freedom / 2, (draws - 1) * freedom / 2) * draws
        count = int(ordered.size - np.searchsorted(ordered, above, side="right"))
        found.append((level, count, level * ordered.size))
        refuted = refuted or at_least(count, ordered.size, level) < REFUTED / len(_LEVELS)
    return refuted, tuple(found)
