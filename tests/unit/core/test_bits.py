"""Equality of bytes, and how far two floats are apart."""

from __future__ import annotations

import math
import struct
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from verify.bits import (
    FEW_THREADS,
    bits_of,
    describe,
    few_threads,
    first_difference,
    first_unlike,
    same_bits,
    ulp_distance,
)

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
NAN, INF = math.nan, math.inf
INTEGERS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}


def of_bits(pattern: int, dtype: torch.dtype) -> Tensor:
    """The 0-d float with these bits."""
    integer = INTEGERS[dtype]
    width = torch.iinfo(integer).bits
    return torch.tensor(pattern - (1 << width) if pattern >> (width - 1) else pattern, dtype=integer).view(dtype)


def smallest(dtype: torch.dtype) -> float:
    """The least positive subnormal."""
    return float(of_bits(1, dtype))


@pytest.mark.parametrize("dtype", FLOATS)
def test_what_floats_call_equal_is_not(dtype: torch.dtype) -> None:
    plus, minus = torch.tensor([0.0], dtype=dtype), torch.tensor([-0.0], dtype=dtype)
    assert torch.equal(plus, minus) and not same_bits(plus, minus)
    nan = torch.tensor([NAN], dtype=dtype)
    assert not torch.equal(nan, nan.clone()) and same_bits(nan, nan.clone())
    other = (bits_of(nan) ^ 1).view(dtype)
    assert bool(other.isnan()) and not same_bits(nan, other)


def test_structure_comes_before_values() -> None:
    zeros = torch.zeros(2, 3)
    for other in (torch.zeros(3, 2), torch.zeros(6), torch.zeros(2, 3, 1), torch.zeros(2, 3, dtype=torch.int32)):
        assert not same_bits(zeros, other)
        with pytest.raises(ValueError, match=r"torch.float32 \(2, 3\) cannot be compared with torch\.\w+ \("):
            first_difference(zeros, other)
    assert not same_bits(torch.zeros(2, dtype=torch.float16), torch.zeros(2, dtype=torch.bfloat16))


def test_other_dtypes() -> None:
    for dtype in (
        torch.bool,
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.complex64,
        torch.complex128,
    ):
        a = torch.tensor([1, 0, 1]).to(dtype)
        assert same_bits(a, a.clone()) and not same_bits(a, a.flip(0)[[1, 0, 2]])


def test_views_are_compared_by_element_not_by_place_in_memory() -> None:
    base = torch.arange(12.0).view(3, 4)
    turned = base.t()
    assert not turned.is_contiguous()
    assert same_bits(turned, turned.contiguous())
    assert same_bits(base[:, ::2], torch.tensor([[0.0, 2.0], [4.0, 6.0], [8.0, 10.0]]))
    assert same_bits(torch.zeros(1).expand(3), torch.zeros(3))
    assert bits_of(turned).data_ptr() == base.data_ptr()
    other = turned.contiguous().clone()
    other[3, 1] = -1.0
    found = first_difference(turned, other)
    assert found is not None
    assert (found.index, found.values, found.mismatched) == ((3, 1), (7.0, -1.0), 1)


def test_nothing_to_compare_is_no_difference() -> None:
    empty = torch.empty(0, 3)
    assert same_bits(empty, torch.empty(0, 3))
    assert first_difference(empty, torch.empty(0, 3)) is None
    assert ulp_distance(empty, empty).size == 0


def test_no_difference() -> None:
    a = torch.tensor([NAN, -0.0, INF, 1.0])
    assert first_difference(a, a.clone()) is None


def test_the_first_in_row_major_order_and_how_many() -> None:
    a = torch.ones(3, 4)
    b = a.clone()
    b[1, 3], b[2, 0], b[2, 2] = 1.0 + 2**-23, 2.0, 1.0 - 2**-24
    found = first_difference(a, b)
    assert found is not None
    assert (found.index, found.mismatched, found.of) == ((1, 3), 3, 12)
    assert (found.bits, found.values) == (("0x3f800000", "0x3f800001"), (1.0, 1.0 + 2**-23))
    assert (found.ulp, found.max_ulp) == (1, 2**23)


def test_a_single_number_has_the_empty_index() -> None:
    found = first_difference(torch.tensor(1.0), torch.tensor(1.5))
    assert found is not None
    assert (found.index, found.mismatched, found.of, found.ulp, found.max_ulp) == ((), 1, 1, 2**22, 2**22)


def test_zeros_of_either_sign() -> None:
    found = first_difference(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert found is not None
    assert (found.bits, found.ulp) == (("0x00000000", "0x80000000"), 1)
    assert math.copysign(1.0, found.values[1]) == -1.0


def test_nans_have_bits_and_no_distance() -> None:
    a = torch.stack([of_bits(0x7FC00000, torch.float32), torch.tensor(1.0)])
    b = torch.stack([of_bits(0xFFC00001, torch.float32), torch.tensor(2.0)])
    found = first_difference(a, b)
    assert found is not None
    assert (found.bits, found.ulp, found.max_ulp) == (("0x7fc00000", "0xffc00001"), None, None)
    # A NaN further on leaves the first distance known and the greatest unknown.
    found = first_difference(a.flip(0), b.flip(0))
    assert found is not None
    assert (found.ulp, found.max_ulp, found.mismatched) == (2**23, None, 2)


def test_integers_have_no_distance() -> None:
    found = first_difference(torch.tensor([1, -1], dtype=torch.int16), torch.tensor([1, 3], dtype=torch.int16))
    assert found is not None
    assert (found.bits, found.values, found.ulp, found.max_ulp) == (("0xffff", "0x0003"), (-1, 3), None, None)


@pytest.mark.parametrize(
    ("dtype", "bits"),
    [
        (torch.float64, ("0x3ff0000000000000", "0xbff0000000000000")),
        (torch.float32, ("0x3f800000", "0xbf800000")),
        (torch.float16, ("0x3c00", "0xbc00")),
        (torch.bfloat16, ("0x3f80", "0xbf80")),
    ],
)
def test_bits_are_as_wide_as_the_dtype(dtype: torch.dtype, bits: tuple[str, str]) -> None:
    found = first_difference(torch.tensor([1.0], dtype=dtype), torch.tensor([-1.0], dtype=dtype))
    assert found is not None
    assert (found.bits, found.values) == (bits, (1.0, -1.0))
    assert found.ulp == 2 * int(bits[0], 16) + 1


@pytest.mark.parametrize("dtype", FLOATS)
def test_neighbours_are_one_apart(dtype: torch.dtype) -> None:
    least = smallest(dtype)
    chain = torch.tensor([-2 * least, -least, -0.0, 0.0, least, 2 * least], dtype=dtype)
    assert ulp_distance(chain[:-1], chain[1:]).tolist() == [1] * 5
    assert ulp_distance(chain[:1], chain[-1:]).tolist() == [5]
    one = torch.ones(1, dtype=dtype)
    for direction in (INF, -INF):
        next_to_it = torch.nextafter(one, torch.tensor([direction], dtype=dtype))
        assert ulp_distance(one, next_to_it).tolist() == ulp_distance(-next_to_it, -one).tolist() == [1]
    info = torch.finfo(dtype)
    ends = torch.tensor([info.max, -info.max], dtype=dtype)
    assert ulp_distance(ends, torch.tensor([INF, -INF], dtype=dtype)).tolist() == [1, 1]


def test_float64_of_opposite_sign_are_further_apart_than_int64_reaches() -> None:
    apart = 2 * struct.unpack("<q", struct.pack("<d", INF))[0] + 1
    assert apart > 2**63
    low, high = torch.tensor([-INF], dtype=torch.float64), torch.tensor([INF], dtype=torch.float64)
    assert ulp_distance(low, high).tolist() == ulp_distance(high, low).tolist() == [apart]
    found = first_difference(torch.cat([low, low]), torch.cat([low, high]))
    assert found is not None
    assert (found.ulp, found.max_ulp) == (apart, apart)
    assert all(type(value) is int for value in (found.ulp, found.max_ulp))


def test_distances_keep_the_shape_and_mask_nans() -> None:
    a, b = torch.ones(2, 3), torch.ones(2, 3)
    a[0, 1], b[1, 2] = NAN, NAN
    assert ulp_distance(a, b).tolist() == [[0, None, 0], [0, 0, None]]
    assert ulp_distance(a.t(), b.t()).tolist() == [[0, 0], [None, 0], [0, None]]
    assert ulp_distance(torch.tensor(1.0), torch.tensor(1.0)).tolist() == 0


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(FLOATS), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_distances_against_counting_in_python(dtype: torch.dtype, first: int, second: int) -> None:
    width = torch.iinfo(INTEGERS[dtype]).bits
    patterns = [pattern % (1 << width) for pattern in (first, second)]
    a, b = (of_bits(pattern, dtype).reshape(1) for pattern in patterns)
    sign = 1 << (width - 1)
    # Magnitudes count up from +0 and, one below it, down from -0.
    places = [-(pattern - sign) - 1 if pattern >= sign else pattern for pattern in patterns]
    nan = bool(a.isnan() | b.isnan())
    assert ulp_distance(a, b).tolist() == [None if nan else abs(places[0] - places[1])]
    assert same_bits(a, b) == (patterns[0] == patterns[1])
    found = first_difference(a, b)
    assert (found is None) == (patterns[0] == patterns[1])
    if found is not None:
        assert [int(bits, 16) for bits in found.bits] == patterns
        assert found.ulp == found.max_ulp == ulp_distance(a, b).tolist()[0]
        if not nan and abs(places[0] - places[1]) == 1 and places[0] * places[1] > 0:
            assert Fraction(*float(a).as_integer_ratio()) != Fraction(*float(b).as_integer_ratio())


def test_a_whole_latent_is_compared_at_once() -> None:
    """4096 tokens of 64 channels, all of them different."""
    a = torch.randn(4096, 64, generator=torch.Generator().manual_seed(0))
    b = (bits_of(a) ^ 1).view(torch.float32)
    found = first_difference(a, b)
    assert found is not None
    assert (found.index, found.mismatched, found.ulp, found.max_ulp) == ((0, 0), 4096 * 64, 1, 1)


def test_tensors_that_change_while_they_are_compared_are_no_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verify.bits.same_bits", lambda a, b: False)
    with pytest.raises(AssertionError, match=r"^the tensors were unequal a moment ago and no element of them differs$"):
        first_difference(torch.ones(2), torch.ones(2))


def test_describe() -> None:
    assert describe(torch.zeros(4096, 64, dtype=torch.bfloat16)) == "bfloat16 (4096, 64)"
    assert describe(None) == "NoneType"
    assert describe([torch.zeros(2)]) == "list"


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 23) - 1, 1 << 23, (1 << 23) + 3, 3 << 23])
def test_every_byte_counts_however_many_threads_share_the_comparison(size: int) -> None:
    # What lies behind them in memory differs, and belongs to neither.
    a, b = torch.zeros(size + 64, dtype=torch.uint8)[:size], torch.ones(size + 64, dtype=torch.uint8)[:size]
    b.zero_()
    assert same_bits(a, b)
    eighth = max(1, size // 8)
    for place in {0, size // 2, size - 1, *range(0, size, eighth), *range(eighth - 1, size, eighth)} - {-1, size}:
        b[place] = 1
        assert not same_bits(a, b), place
        b[place] = 0


def test_tensors_without_bytes_are_an_error_and_no_verdict() -> None:
    meta = torch.zeros(2, device="meta")
    for other in (meta, torch.zeros(2)):
        with pytest.raises(NotImplementedError, match=r"aten::equal.*[Mm]eta"):
            same_bits(meta, other)
        with pytest.raises(NotImplementedError, match=r"aten::equal.*[Mm]eta"):
            same_bits(other, meta)


def test_what_lies_scattered_is_compared_in_order() -> None:
    a = torch.arange(1 << 22, dtype=torch.float32).view(1 << 11, 1 << 11)
    b = a.T.contiguous().T
    assert same_bits(a, b)
    b[3, 1000] += 1
    assert not same_bits(a, b)


@pytest.mark.parametrize("rows", [3, 40])  # Below and above where threads begin to be used.
def test_the_first_row_that_is_unlike(rows: int) -> None:
    a = torch.zeros(rows, 1 << 17)
    b = a.clone()
    assert first_unlike(a, b) is None
    b[rows - 1, -1] = -0.0
    assert first_unlike(a, b) == rows - 1
    b[1, 0] = math.nan
    assert first_unlike(a, b) == 1
    assert first_unlike(a, a.half()) == 0
    assert first_unlike(a, a[:, 1:]) == 0
    assert first_unlike(a[:0], b[:0]) is None
    assert first_unlike(a[:0], b[:0, 1:]) is None
    with pytest.raises(ValueError, match=r"zip\(\) argument 2 is shorter"):
        first_unlike(a, a[:2])


def test_few_threads_inside_and_as_many_as_before_outside() -> None:
    before = torch.get_num_threads()
    try:
        for threads, inside in ((1, 1), (FEW_THREADS + 5, FEW_THREADS)):
            torch.set_num_threads(threads)
            with few_threads():
                assert torch.get_num_threads() == inside
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
