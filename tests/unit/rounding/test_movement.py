"""Each operator moves by at most what is said of it, and what rounds nothing stays."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from verify.bits import same_bits, ulp_distance
from verify.rounding.movement import UNITS, Kind, kind_of
from verify.rounding.randomised import NoiseTable, randomised

DTYPES = list(UNITS)
CPU = torch.device("cpu")


def drawn(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3)).to(dtype)


def moved(compute: Callable[[], Tensor], seed: int = 1) -> Tensor:
    with torch.no_grad(), randomised(NoiseTable(CPU, 5), seed):
        return compute()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("operator", [torch.exp, torch.sigmoid, F.silu, torch.rsqrt, lambda x: x * 3, lambda x: x + 1])
def test_an_element_moves_to_a_neighbour_or_stays(dtype: torch.dtype, operator: Callable[[Tensor], Tensor]) -> None:
    x = drawn(dtype, 64, 64).abs() + 0.01
    right = operator(x)
    apart = ulp_distance(right, moved(lambda: operator(x)))
    assert apart.max() == 1
    share = float((apart > 0).mean())
    assert 0.4 < share < 0.6
    ups = (moved(lambda: operator(x)) > right).double().mean()
    assert 0.2 < ups < 0.3


@pytest.mark.parametrize("dtype", DTYPES)
def test_powers_of_two_zeros_infinities_and_nans(dtype: torch.dtype) -> None:
    x = torch.tensor([1.0, 2.0, -4.0, 0.0, -0.0, float("inf"), float("nan")] * 300).to(dtype)
    found = moved(lambda: x * 1.0)
    assert ulp_distance(x, found).max() == 1
    assert torch.equal(found[3::7], x[3::7]) and torch.equal(found[5::7], x[5::7]) and found[6::7].isnan().all()


def test_what_rounds_nothing_stays() -> None:
    x = drawn(torch.float32, 8, 8)
    exact_ones: list[Callable[[], Tensor]] = [
        lambda: x.t().contiguous(),
        lambda: torch.cat([x, x]),
        lambda: x.double(),
        lambda: x[torch.tensor([1, 2])],
        x.neg,
        lambda: x.clamp(-1, 1),
        lambda: x.roll(1, 0),
    ]
    for exact in exact_ones:
        assert same_bits(exact(), moved(exact))
    assert not same_bits(x.bfloat16(), moved(lambda: x.bfloat16()))  # It narrows.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_sum_that_cancels_moves_by_the_size_of_its_terms(dtype: torch.dtype) -> None:
    a, b = torch.ones(64, 2, dtype=dtype), torch.tensor([[1.0], [-1.0]], dtype=dtype)
    found = moved(lambda: a @ b)
    size = UNITS[dtype] * 2**0.5
    assert 0 < found.abs().max() < 4 * size


def test_a_float32_sum_moves_with_the_root_of_its_length() -> None:
    moves = []
    for terms in (16, 1024):
        a, b = drawn(torch.float32, 200, terms), drawn(torch.float32, terms, 200)
        right = a @ b
        moves.append(float((moved(partial(torch.matmul, a, b)) - right).std() / right.std()) / UNITS[torch.float32])
    assert moves[1] / moves[0] == pytest.approx(8, rel=0.25)
    # sqrt(n / 2) units: more than summing one by one errs by, sqrt(n / 6).
    assert moves[1] == pytest.approx((1024 / 2) ** 0.5, rel=0.25)


def test_attention_moves_by_the_size_of_its_values() -> None:
    q, k, v = (drawn(torch.bfloat16, 1, 2, 5, 16) for _ in range(3))
    right = F.scaled_dot_product_attention(q, k, v)
    found = moved(lambda: F.scaled_dot_product_attention(q, k, v))
    assert not same_bits(right, found)
    assert ((found - right).abs() <= 2.0**-7 * v.abs().max()).all()


def test_weights_and_inputs_are_not_written_to() -> None:
    x, w = drawn(torch.bfloat16, 4, 4), drawn(torch.bfloat16, 4, 4)
    before = x.clone(), w.clone()
    moved(lambda: F.linear(x, w) + x.reshape(4, 4).view(2, 8).view(4, 4))
    assert same_bits(x, before[0]) and same_bits(w, before[1])


def test_in_place_operators_move_what_they_wrote() -> None:
    x = drawn(torch.float32, 100)
    found = moved(lambda: x.clone().mul_(3))
    assert ulp_distance(x * 3, found).max() == 1


def test_draws_repeat_by_their_seed_and_leave_generators_alone() -> None:
    x = drawn(torch.float32, 100)
    state = torch.get_rng_state()
    assert same_bits(moved(x.exp, 7), moved(x.exp, 7))
    assert not same_bits(moved(x.exp, 7), moved(x.exp, 8))
    assert torch.equal(state, torch.get_rng_state())


def test_operators_are_sorted_by_what_they_do() -> None:
    aten = torch.ops.aten
    assert kind_of(aten.mm.default)[0] is Kind.SUM
    assert kind_of(aten.view.default)[0] is Kind.EXACT
    assert kind_of(aten.mean.dim)[0] is Kind.MEAN
    assert kind_of(aten.linalg_vector_norm.default)[0] is Kind.POSITIVE
    assert kind_of(aten.add_.Tensor)[0] is Kind.IN_PLACE
    assert kind_of(aten._scaled_dot_product_flash_attention_for_cpu.default)[0] is Kind.ATTENTION
    assert kind_of(aten.exp.default)[0] is Kind.ELEMENT
