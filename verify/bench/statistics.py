"""Medians, spreads and ratios, with intervals that assume no distribution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import comb
from typing import Any

import numpy as np

_CONFIDENCE = 0.95
FEWEST_PAIRS = 5


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median (P50), least and greatest (P100) of some seconds, and the values themselves."""
    return {"p50": float(np.median(values)), "min": min(values), "p100": max(values), "values": list(values)}


def paired_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> dict[str, float]:
    """The median of pairwise ratios with an interval for it that holds whatever their distribution.

    Pairs were measured one after the other, so that a drift of the machine's speed cancels. The interval lies between
    two order statistics (Thompson 1936): the median of ``n`` values lies between the k-th least and the k-th greatest
    unless at most ``k - 1`` values fall on one side of it, which a fair coin decides for each. The largest k that keeps
    95 % is taken; five values and fewer have none, so theirs is the whole range, with its confidence beside it.
    """
    ratios = sorted(float(a / b) for a, b in zip(numerators, denominators, strict=True))
    n = len(ratios)
    k, confidence = 1, _coverage(n, 1)
    while _coverage(n, k + 1) >= _CONFIDENCE:
        k, confidence = k + 1, _coverage(n, k + 1)
    return {
        "ratio": float(np.median(ratios)),
        "low": ratios[k - 1],
        "high": ratios[n - k],
        "pairs": n,
        "confidence": confidence,
    }


def _coverage(n: int, k: int) -> float:
    """The probability that the median lies between the k-th least and the k-th greatest of ``n`` values."""
    return max(0.0, 1 - 2 * sum(comb(n, i) for i in range(k)) / 2**n) if 2 * k <= n + 1 else 0.0


def outcome(ratio: Mapping[str, float]) -> str:
    """What a ratio of seconds ``slower / faster`` shows: ``win``, ``loss``, ``none`` or ``too few``."""
    if ratio["pairs"] < FEWEST_PAIRS:
        return "too few"
    return "win" if ratio["low"] > 1 else "loss" if ratio["high"] < 1 else "none"


def sentence(ratio: Mapping[str, float], faster: str, slower: str) -> str:
    """A sentence about a ratio of seconds ``slower / faster``. ``±`` reaches the farther end of the interval."""
    shown = outcome(ratio)
    if shown == "too few":
        return f"too few pairs ({ratio['pairs']}) to say whether {faster} is faster than {slower}"
    win, least, most = (100 * (1 - 1 / ratio[key]) for key in ("ratio", "low", "high"))
    if shown == "none":
        said = f"no measurable difference between {faster} and {slower} (within ± {max(abs(least), abs(most)):.2f} %)"
    else:
        half = max(most - win, win - least)
        said = (
            f"{faster}: net win of {win:.2f} % ± {half:.2f} over {slower}"
            if shown == "win"
            else f"{faster}: net loss of {-win:.2f} % ± {half:.2f} against {slower}"
        )
    sure = ratio.get("confidence", _CONFIDENCE)
    return said if sure >= _CONFIDENCE else f"{said}, at {100 * sure:.0f} % confidence"
