"""The combine's error bound: it holds for any bits, is near, catches wrong combines, and says what it cannot know."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from combine_cases import DTYPES, KINDS, MUTANTS, Case, cases, mutant_cases, mutated, ordinary
from oracle_cases import Array, as_float64

from verify.oracle.bound import combine_bound, ulps, ulps_of_shape, within
from verify.oracle.formats import format_of
from verify.request import RENORM_TYPES


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_holds(kind: str, dtype: str) -> None:
    claimed = kinds_claimed = 0
    for case in cases(kind, dtype, 60):
        observed, expected, bound = case.judge()
        assert within(observed, expected, bound).all(), case
        claimed += int(np.isfinite(bound).sum())
        kinds_claimed += int((np.isfinite(bound) & ~np.isfinite(expected)).sum())
        assert (bound[~np.isfinite(expected) & np.isfinite(bound)] == 0).all()
    if kind == "bits":
        assert kinds_claimed > 1000  # NaN and infinity are foretold, not passed over.
    # Of bits, huge numbers and wide float16, some intermediate mostly overflows; zero by zero is lost in float16.
    scarce = kind in ("bits", "huge") or (dtype == "float16" and kind in ("wide", "zero"))
    assert claimed > (200 if scarce else 5000), claimed


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("renorm_type", RENORM_TYPES)
def test_the_bound_is_near(renorm_type: str, dtype: str) -> None:
    """Some element comes within a few times its bound. In float64 PyTorch may agree with the oracle to the bit."""
    rng = np.random.default_rng(0)
    greatest = 0.0
    for _ in range(30):
        case = Case(ordinary((16, 3), dtype, rng), (4.0, 1.5, renorm_type, 0.0))
        observed, expected, bound = case.judge()
        greatest = max(greatest, float((np.abs(observed - expected) / bound).max()))
    assert greatest <= 1
    assert greatest > 0.15 or dtype == "float64"


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize("mutant", ["none", *MUTANTS])
def test_a_wrong_combine_exceeds_the_bound(mutant: str, dtype: str) -> None:
    """The mutant without a change stands for the mutants' own code being right otherwise."""
    combine = mutated() if mutant == "none" else MUTANTS[mutant]
    kept = [within(*case.judge(combine)).all() for case in mutant_cases(dtype)]
    # These change less than a few roundings to bfloat16 do.
    small = ("eps 1e-3", "result through float16", "scale through bfloat16")
    same = mutant == "none" or (dtype == "bfloat16" and mutant in small)
    assert all(kept) == same


def test_cancellation_widens_the_bound_where_it_happens() -> None:
    gen = torch.tensor([[1.0, 1.0, 1.0]])
    text = torch.tensor([[1.0, 4 / 3, 1.0]])  # 4/3 + 4 * (1 - 4/3) is 0 but for rounding.
    _, expected, bound = Case((gen, text, None), (4.0, 1.0, "global", 1.0)).judge()
    assert ulps(bound, expected, "float32")[0, 0] < 10
    assert ulps(bound, expected, "float32")[0, 1] > 1000
    assert bound[0, 1] < 10 * bound[0, 0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_possible_overflow_is_said_to_be_unknown(dtype: str) -> None:
    x = torch.full((2, 2), torch.finfo(getattr(torch, dtype)).max, dtype=getattr(torch, dtype))
    assert np.isinf(Case((x, -x, None), (4.0, 1.0, "global", 0.0)).judge()[2]).all()
    small = x.clone()
    small[1] = 1
    _, _, bound = Case((small, small, None), (4.0, 1.0, "channel", 0.0)).judge()
    assert np.isinf(bound).all(1).tolist() == [True, False]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_scale_beyond_the_format(dtype: str) -> None:
    x = torch.ones(2, 2, dtype=getattr(torch, dtype))
    beyond = np.isinf(Case((x, x * 0, None), (1e39, 1.0, "global", 0.0)).judge()[2])
    assert beyond.all() == (dtype != "float64")


def test_zero_norms() -> None:
    """0 / (0 + 1e-8) is 0; in float16 the 1e-8 is 0 as well, and 0 / 0 is anything."""
    for dtype in DTYPES:
        zero = torch.zeros(2, 3, dtype=getattr(torch, dtype))
        observed, expected, bound = Case((zero, zero, None), (4.0, 1.0, "channel", 0.0)).judge()
        assert (expected == 0).all()
        assert np.isnan(observed).all() == np.isinf(bound).all() == (dtype == "float16")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_foretold(special: float, dtype: str) -> None:
    gen, text, img = ordinary((4, 3), dtype, np.random.default_rng(3))
    gen[1, 2] = special
    for kind in RENORM_TYPES:
        observed, expected, bound = Case((gen, text, img), (4.0, 1.5, kind, 0.2)).judge()
        assert np.isfinite(bound).all()
        assert (np.isfinite(observed) == np.isfinite(expected)).all()
        assert within(observed, expected, bound).all()
        moved = observed.copy()
        moved[1, 2] = 1.0
        assert not within(moved, expected, bound)[1, 2]


def test_what_within_accepts() -> None:
    inf, nan = np.inf, np.nan
    observed = np.array([1.0, 1.2, inf, inf, nan, nan, 5.0, nan, inf])
    expected = np.array([1.1, 1.0, inf, -inf, nan, 1.0, nan, 1.0, 1.0])
    bound = np.array([0.2, 0.1, 0.0, 0.0, 0.0, 0.1, 0.0, inf, 0.5])
    assert within(observed, expected, bound).tolist() == [True, False, True, False, True, False, False, True, False]


@pytest.mark.parametrize("dtype", DTYPES)
def test_ulps_are_distances_of_neighbours(dtype: str) -> None:
    info = torch.finfo(getattr(torch, dtype))
    for x in (1.0, 1.5, info.smallest_normal, 1000.0):
        # PyTorch knows no neighbour of a bfloat16 or float16; the numbers between 2^k and 2^(k+1) are evenly spaced.
        apart = 2.0 ** math.floor(math.log2(x)) * info.eps
        assert ulps(np.array([apart, 3 * apart]), np.array(x), dtype).tolist() == [1.0, 3.0]
        assert torch.tensor(x + apart, dtype=torch.float64).to(getattr(torch, dtype)).item() == x + apart
    assert np.isnan(ulps(np.array(0.0), np.array(np.inf), dtype))
    assert ulps(np.array(info.smallest_normal * info.eps), np.array(0.0), dtype) == 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("renorm_type", RENORM_TYPES)
@pytest.mark.parametrize("with_img", [False, True])
def test_the_bound_is_what_shape_and_dtype_say(renorm_type: str, dtype: str, with_img: bool) -> None:
    """To first order, and never more; float64 counts the oracle's errors too."""
    gen, text, img = ordinary((6, 32), dtype, np.random.default_rng(5))
    case = Case((gen, text, img if with_img else None), (4.0, 1.5, renorm_type, 0.0))
    _, expected, bound = case.judge()
    element, group = amplification(case)
    count = gen.numel() if renorm_type == "global" else gen.shape[1]
    allowed = ulps_of_shape(count, dtype, element, group, with_img=with_img, renorm_type=renorm_type)
    there = expected != 0  # Nothing is a multiple of a vanishing result.
    in_units = bound[there] / (format_of(dtype).unit * np.abs(expected[there]))
    share = in_units / np.broadcast_to(allowed, there.shape)[there]
    assert share.max() <= (2.001 if dtype == "float64" else 1.12 if dtype == "bfloat16" else 1.02)
    assert np.median(share) > 0.2


def amplification(case: Case) -> tuple[Array, Array]:
    """The ratios that :func:`ulps_of_shape` asks for, of each element and of each norm."""
    gen, text, img = (None if x is None else as_float64(x) for x in case.branches)
    scale, img_scale, kind, _ = case.settings
    assert gen is not None and text is not None
    guided = text + scale * (gen - text)
    ratios = [(scale * (gen - text), guided)]
    if kind == "text_channel":
        norms = [np.linalg.norm(x, axis=1, keepdims=True) for x in (gen, guided)]
        guided = guided * np.minimum(norms[0] / norms[1], 1)
    if img is not None:
        result = img + img_scale * (guided - img)
        ratios += [(img_scale * (guided - img), result), (img_scale * guided, result)]
    axes = None if kind == "global" else 1
    norms_of = [[np.linalg.norm(x, axis=axes, keepdims=True) for x in pair] for pair in ratios]
    group = [a / b for a, b in norms_of]
    with np.errstate(divide="ignore"):
        return np.max([np.abs(a / b) for a, b in ratios], axis=0), np.max(group, axis=0)


@pytest.mark.parametrize(
    ("dtype", "count", "expected"),
    [("bfloat16", 64, 12.0), ("bfloat16", 262144, 16.0), ("float16", 262144, 44.0), ("float32", 64, 78.0),
     ("float32", 262144, 262158.0), ("float64", 64, 76.0)],
)  # fmt: skip
def test_ulps_without_cancellation(dtype: str, count: int, expected: float) -> None:
    found = ulps_of_shape(count, dtype, 1.0, 1.0, with_img=False, renorm_type="global")
    assert found == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_unlikely_sums_aside_the_bound_shrinks(dtype: str) -> None:
    case = Case(ordinary((1024, 64), dtype, np.random.default_rng(6)), (4.0, 1.5, "global", 0.0))
    observed, expected, rigorous = case.judge()
    _, _, likely = case.judge(failure_probability=1e-9)
    assert within(observed, expected, likely).all()
    assert 10 < np.median(rigorous / likely) < 256  # The root of 65,536 is 256.
    assert (likely <= case.judge(failure_probability=1e-12)[2]).all()


def test_bad_names_are_refused() -> None:
    x = np.ones((1, 1))
    with pytest.raises(ValueError, match="dtype is 'int8'"):
        combine_bound(x, x, None, 1.0, 1.0, "global", 0.0, "int8")
    with pytest.raises(ValueError, match="renorm_type is 'none'"):
        combine_bound(x, x, None, 1.0, 1.0, "none", 0.0, "float32")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bound_holds_on_a_gpu(dtype: str) -> None:
    for kind in KINDS:
        for case in cases(kind, dtype, 60):
            on_gpu = Case(tuple(None if x is None else x.cuda() for x in case.branches), case.settings)  # type: ignore[arg-type]
            assert within(*on_gpu.judge()).all(), case
