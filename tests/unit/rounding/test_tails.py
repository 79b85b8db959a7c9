"""Tails of the beta and F distributions, against values that are known in closed form or from tables."""

from __future__ import annotations

import math

import pytest

from verify.rounding.tails import at_least, beta_above, beta_at, ratio_above, ratio_at


@pytest.mark.parametrize("x", [1e-6, 0.1, 0.5, 0.9, 1 - 1e-6])
@pytest.mark.parametrize("b", [0.5, 1.0, 7.0, 400.0])
def test_the_tail_of_a_beta_with_one_shape_of_one_is_a_power(x: float, b: float) -> None:
    assert beta_above(x, 1.0, b) == pytest.approx((1 - x) ** b, rel=1e-9, abs=1e-280)


def test_far_tails_keep_their_digits() -> None:
    # With two degrees against n, P(F > r) = (1 + 2r/n)^(-n/2).
    for ratio in (1.0, 10.0, 100.0):
        assert ratio_above(ratio, 2, 32) == pytest.approx((1 + 2 * ratio / 32) ** -16, rel=1e-9)
    # A squared normal, with scales that are known: P(z^2 > 40) = erfc(sqrt(20)).
    assert ratio_above(40.0, 1, 1e8) == pytest.approx(math.erfc(math.sqrt(20)), rel=1e-4)


def test_ends() -> None:
    assert (beta_above(0.0, 2, 3), beta_above(1.0, 2, 3)) == (1.0, 0.0)
    assert ratio_above(math.inf, 3, 5) == ratio_above(math.nan, 3, 5) == 0.0


@pytest.mark.parametrize(("freedom", "of"), [(0.3, 5.0), (1, 16), (200, 3200)])
@pytest.mark.parametrize("probability", [0.05, 1e-6, 1e-12])
def test_quantiles_turn_tails_round(freedom: float, of: float, probability: float) -> None:
    assert ratio_above(ratio_at(probability, freedom, of), freedom, of) == pytest.approx(probability, rel=1e-3)
    share = beta_at(0.01, freedom / 2, of / 2)
    assert beta_above(share, freedom / 2, of / 2) == pytest.approx(0.01, rel=1e-3)


def test_counts_of_rare_events() -> None:
    assert at_least(0, 10, 0.1) == 1.0
    assert at_least(1, 10, 0.1) == pytest.approx(1 - 0.9**10)
    assert at_least(10, 10, 0.1) == pytest.approx(1e-10, rel=1e-3)
