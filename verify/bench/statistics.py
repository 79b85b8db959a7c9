"""Medians, spreads and ratios that say no more than the data carry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_RESAMPLES = 10_000
_CONFIDENCE = 0.95


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median (P50), least and greatest (P100) of some seconds, and the values themselves."""
    return {"p50": float(np.median(values)), "min": min(values), "p100": max(values), "values": list(values)}


def paired_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> dict[str, float]:
    """The median of pairwise ratios with a bootstrap percentile interval (Efron 1979), 95 %.

    Pairs were measured one after the other, so that a drift of the machine's speed cancels.
    """
    ratios = np.asarray(numerators) / np.asarray(denominators)
    draws = np.random.default_rng(0).choice(ratios, (_RESAMPLES, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    return {"ratio": float(np.median(ratios)), "low": float(low), "high": float(high), "pairs": len(ratios)}


def sentence(ratio: dict[str, float], faster: str, slower: str) -> str:
    """What a ratio of seconds ``slower / faster`` lets one say."""
    if ratio["pairs"] < 5:
        return f"too few pairs ({ratio['pairs']}) to say whether {faster} is faster than {slower}"
    win, half = 100 * (1 - 1 / ratio["ratio"]), 50 * (1 / ratio["low"] - 1 / ratio["high"])
    if ratio["low"] > 1:
        return f"{faster}: net win of {win:.2f} % ± {half:.2f} over {slower}"
    if ratio["high"] < 1:
        return f"{faster}: net loss of {-win:.2f} % ± {half:.2f} against {slower}"
    return f"no measurable difference between {faster} and {slower} (within ± {half:.2f} %)"
