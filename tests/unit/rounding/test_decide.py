"""The decision over drawn deviations whose distribution is known: how often it is wrong, and what it sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from verify.rounding.decide import Decision, Word, decide
from verify.rounding.deviations import CHANNEL, ELEMENT, TOKEN, WHOLE, Deviation, Deviations
from verify.rounding.fits import fitted

TOKENS, CHANNELS, STEPS, DRAWS = 24, 8, 6, 16
EQUAL = Deviation(0, (0,), True, {}, {})

Noise = Callable[[torch.Generator], Tensor]


def normal(generator: torch.Generator) -> Tensor:
    """Elements of other sizes in each channel, which move together a little."""
    own = torch.randn(TOKENS, CHANNELS, generator=generator, dtype=torch.float64)
    return (own + 0.5 * torch.randn(1, CHANNELS, generator=generator)) * torch.arange(1, CHANNELS + 1)


def judged(
    seed: int, noise: Noise = normal, fault: Tensor | float = 0.0, alarm: float = 1e-6, size: float = 1.0
) -> Decision:
    generator = torch.Generator().manual_seed(seed)
    steps = []
    for step in range(STEPS):
        reference = torch.zeros(TOKENS, CHANNELS)
        deviations = Deviations(reference, size * noise(generator) + (fault if step == 2 else 0.0))
        for _ in range(DRAWS):
            deviations.add(noise(generator))
        steps.append(deviations.energies(step, (0, 1)))
    return decide(steps, alarm, DRAWS)


def test_false_alarms_keep_to_their_probability() -> None:
    found = [judged(seed, alarm=0.2).word for seed in range(60)]
    assert found.count(Word.NOT_EXPLAINED) <= 20  # 12 are expected at most; more than 20 happen once in 150.
    assert all(judged(seed).word is Word.EXPLAINED for seed in range(60))


@pytest.mark.parametrize(
    ("kind", "index", "where"),
    [
        (WHOLE, (), (slice(None), slice(None))),
        (TOKEN, (5,), (5, slice(None))),
        (CHANNEL, (3,), (slice(None), 3)),
        (ELEMENT, (7, 2), (7, 2)),
    ],
)
def test_each_kind_sees_its_own_fault(kind: str, index: tuple[int, ...], where: Any) -> None:
    fault = torch.zeros(TOKENS, CHANNELS, dtype=torch.float64)
    fault[where] = {WHOLE: 9.0, TOKEN: 45.0, CHANNEL: 25.0, ELEMENT: 60.0}[kind]
    decision = judged(1, fault=fault)
    assert decision.word is Word.NOT_EXPLAINED
    assert {each.step for each in decision.exceeding} == {2}
    assert (kind, index) in {(each.kind, each.index) for each in decision.exceeding}


def test_smaller_deviations_than_drawn_are_explained() -> None:
    assert judged(1, size=0.3).word is Word.EXPLAINED


def test_equal_bytes_are_called_equal_and_nothing_is_unknown() -> None:
    assert decide([EQUAL, EQUAL], 1e-6, DRAWS).word is Word.EQUAL
    assert decide([], 1e-6, DRAWS).word is Word.UNKNOWN


def test_what_no_draw_moves_may_not_move() -> None:
    def still(generator: torch.Generator) -> Tensor:
        noise = normal(generator)
        noise[4] = 0.0
        return noise

    fault = torch.zeros(TOKENS, CHANNELS, dtype=torch.float64)
    fault[4, 0] = 1e-30
    decision = judged(1, still, fault)
    assert decision.word is Word.NOT_EXPLAINED
    assert decision.exceeding[0].kind == TOKEN and decision.exceeding[0].index == (4,)
    assert decision.exceeding[0].seen == float("inf") and decision.exceeding[0].probability == 0.0


def test_not_finite_and_of_another_form() -> None:
    assert judged(1, fault=float("nan")).word is Word.NOT_EXPLAINED
    malformed = Deviation(1, (1,), False, {}, {}, form="float16 (2, 2), where the reference has float32 (2, 2)")
    decision = decide([EQUAL, malformed], 1e-6, DRAWS)
    assert decision.word is Word.NOT_EXPLAINED and decision.malformed is malformed


def test_tails_that_nothing_fits_are_unknown() -> None:
    def rare(generator: torch.Generator) -> Tensor:
        """Once in fifty draws everything."""
        return normal(generator) * (1e6 if torch.rand(1, generator=generator) < 0.02 else 1.0)

    assert Word.UNKNOWN in {judged(seed, rare).word for seed in range(6)}


@pytest.mark.parametrize("freedom", [1, 4, 40])
def test_degrees_of_freedom_are_found(freedom: int) -> None:
    generator = torch.Generator().manual_seed(freedom)
    normals = torch.randn(DRAWS, 500, freedom, generator=generator, dtype=torch.float64)
    fit = fitted(normals.square().mean(2).numpy())
    assert not fit.refuted
    assert 0.4 * freedom < fit.pooled < 1.3 * freedom


def test_units_that_vary_more_are_fitted_by_themselves() -> None:
    generator = torch.Generator().manual_seed(0)
    many = torch.randn(DRAWS, 200, 100, generator=generator, dtype=torch.float64).square().mean(2)
    many[:, 7] = torch.randn(DRAWS, generator=generator, dtype=torch.float64).square()
    fit = fitted(many.numpy())
    assert fit.freedom[7] < 10 < 40 < fit.freedom[8]
