"""Shrinking finds a simple failing value, and does not swallow what ends it."""

from __future__ import annotations

import pytest
from hypothesis import strategies

from verify.errors import Unjudged
from verify.fuzz.drawing import shrink

NUMBERS = strategies.integers(0, 1000)


def test_the_simplest_failing_value_is_found() -> None:
    failing: list[int] = []

    def fails(value: int) -> bool:
        if value >= 100:
            failing.append(value)
        return value >= 100

    shrink(NUMBERS, fails, 100, 1)
    assert failing[-1] == 100


def test_the_death_of_a_rank_ends_it_and_is_told() -> None:
    tried: list[int] = []

    def fails(value: int) -> bool:
        tried.append(value)
        if len(tried) > 1 and value >= 100:
            raise Unjudged("rank 1 was killed by SIGSEGV")
        return value >= 100

    with pytest.raises(Unjudged, match="rank 1 was killed by SIGSEGV"):
        shrink(NUMBERS, fails, 100, 1)
    count = len(tried)
    assert count < 100
