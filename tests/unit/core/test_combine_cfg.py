"""Guidance and renorm, each formula against exact numbers and against Python's own floats."""

from __future__ import annotations

import itertools
import math
import struct

import pytest
import torch
from torch import Tensor

from verify.bits import same_bits
from verify.combine import EPS, combine_cfg
from verify.request import RENORM_TYPES

Rows = list[list[float]]


def by_hand(gen: Rows, text: Rows, img: Rows | None, s: float, s_img: float, kind: str, least: float) -> Rows:
    """The formulas of the docstring on Python floats, one token after another."""

    def toward(base: Rows, target: Rows, scale: float) -> Rows:
        return [[b + scale * (t - b) for b, t in zip(*rows, strict=True)] for rows in zip(base, target, strict=True)]

    def norm(rows: Rows) -> float:
        return math.sqrt(math.fsum(v * v for row in rows for v in row))

    def held(rows: Rows) -> Rows:
        def factor(gen: Rows, rows: Rows) -> float:
            return min(max(norm(gen) / (norm(rows) + EPS), least), 1.0)

        each = [factor(gen, rows)] * len(rows)
        if kind != "global":
            each = [factor([g], [row]) for g, row in zip(gen, rows, strict=True)]
        return [[f * v for v in row] for f, row in zip(each, rows, strict=True)]

    guided = toward(text, gen, s)
    if kind == "text_channel":
        guided = held(guided)
    if img is not None:
        guided = toward(img, guided, s_img)
    return guided if kind == "text_channel" else held(guided)


GEN = [[0.5, -1.25, 2.0], [0.0, 0.75, -0.5]]
TEXT = [[0.25, -1.0, 1.5], [0.5, 1.0, 0.125]]
IMG = [[-0.5, 0.0, 1.0], [1.0, -0.75, 0.25]]


@pytest.mark.parametrize("kind", RENORM_TYPES)
@pytest.mark.parametrize("least", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("img", [None, IMG], ids=["text", "text and image"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-15), (torch.float32, 1e-6)])
def test_formulas(kind: str, least: float, img: Rows | None, dtype: torch.dtype, tolerance: float) -> None:
    gen, text, image = (None if rows is None else torch.tensor(rows, dtype=dtype) for rows in (GEN, TEXT, img))
    assert gen is not None and text is not None
    got = combine_cfg(gen, text, image, 4.0, 1.5, kind, least)
    expected = torch.tensor(by_hand(GEN, TEXT, img, 4.0, 1.5, kind, least), dtype=torch.float64)
    assert (got.dtype, got.shape) == (dtype, (2, 3))
    assert float((got.double() - expected).abs().max()) <= tolerance * float(expected.abs().max())


def test_the_renorm_types_differ() -> None:
    """Or the test above would not tell them apart."""
    for img in (None, IMG):
        results = [by_hand(GEN, TEXT, img, 4.0, 1.5, kind, 0.0) for kind in RENORM_TYPES]
        same = [a == b for a, b in itertools.combinations(results, 2)]
        # Without image guidance there is nothing between the two places where channel and text_channel hold the norm.
        assert same == [False, False, img is None]


# Norms of (3, 4) and its multiples are whole: every operation is exact in any of these dtypes.
EXACT = [
    ("global", [[3, 4], [0, 0]], [[0, 0], [0, 0]], None, 2, 1, 0.0, [[3, 4], [0, 0]]),
    ("global", [[0, 5], [0, 0]], [[-6, 10], [0, -8]], None, 2, 1, 0.0, [[3, 0], [0, 4]]),
    ("global", [[3, 4]], [[0, 0]], None, 2, 1, 0.75, [[4.5, 6]]),
    ("channel", [[3, 4], [0, 5]], [[0, 0], [0, 10]], None, 2, 1, 0.0, [[3, 4], [0, 0]]),
    ("channel", [[3, 4]], [[0, 0]], [[0, 0]], 2, 2, 0.0, [[3, 4]]),
    ("text_channel", [[3, 4]], [[0, 0]], [[0, 0]], 2, 2, 0.0, [[6, 8]]),
    ("text_channel", [[3, 4], [0, 1]], [[0, 0], [0, 1]], [[1, 2], [0, 3]], 2, 3, 0.0, [[7, 8], [0, -3]]),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", EXACT)
def test_exact_cases(case: tuple[str, Rows, Rows, Rows | None, float, float, float, Rows], dtype: torch.dtype) -> None:
    kind, gen, text, img, s, s_img, least, expected = case
    image = None if img is None else torch.tensor(img, dtype=dtype)
    got = combine_cfg(torch.tensor(gen, dtype=dtype), torch.tensor(text, dtype=dtype), image, s, s_img, kind, least)
    exact = torch.tensor(expected, dtype=dtype)
    assert got.dtype == dtype
    if dtype == torch.float64:  # The only one to tell a norm and that norm plus 1e-8 apart.
        assert float((got - exact).abs().max()) <= 1e-7
    else:
        assert same_bits(got + 0.0, exact)


def bf16(value: float) -> float:
    """The nearest bfloat16, ties to even: the upper half of a float32 with its lower half rounded in."""
    bits = struct.unpack("<I", struct.pack("<f", value))[0]
    bits += 0x7FFF + (bits >> 16 & 1)
    return float(struct.unpack("<f", struct.pack("<I", bits & 0xFFFF0000))[0])


def test_bf16_rounds_after_every_operation() -> None:
    gen, text = [[3.0, 4.0]], [[0.703125, -0.2001953125]]
    steps = [bf16(t + bf16(4.1 * bf16(g - t))) for g, t in zip(gen[0], text[0], strict=True)]
    off = combine_cfg(torch.tensor(gen).bfloat16(), torch.tensor(text).bfloat16(), None, 4.1, 1.0, "global", 1.0)
    assert off.tolist() == [steps]
    exact = [t + 4.1 * (g - t) for g, t in zip(gen[0], text[0], strict=True)]
    assert [bf16(v) for v in exact] != steps, "rounding once would not have been noticed"
    factor = bf16(5.0 / bf16(bf16(math.hypot(*steps)) + EPS))
    on = combine_cfg(torch.tensor(gen).bfloat16(), torch.tensor(text).bfloat16(), None, 4.1, 1.0, "global", 0.0)
    assert on.tolist() == [[bf16(factor * v) for v in steps]]


@pytest.mark.parametrize("kind", RENORM_TYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_renorm_min_of_1_turns_the_renorm_off(kind: str, dtype: torch.dtype) -> None:
    gen, text, img = (torch.tensor(rows, dtype=dtype) for rows in (GEN, TEXT, IMG))
    guided = text + 4.0 * (gen - text)
    assert same_bits(combine_cfg(gen, text, None, 4.0, 1.5, kind, 1.0), guided)
    assert same_bits(combine_cfg(gen, text, img, 4.0, 1.5, kind, 1.0), img + 1.5 * (guided - img))


@pytest.mark.parametrize("kind", RENORM_TYPES)
def test_the_renorm_never_enlarges(kind: str) -> None:
    gen = torch.tensor(GEN)
    halved = torch.zeros_like(gen)  # guided = 0 + 0.5 * gen, shorter than gen.
    assert same_bits(combine_cfg(gen, halved, None, 0.5, 1.0, kind, 0.0), 0.5 * gen + 0.0)


@pytest.mark.parametrize("kind", RENORM_TYPES)
def test_where_the_guided_velocity_vanishes_the_result_is_finite(kind: str) -> None:
    gen = torch.tensor([[3.0, 4.0]])
    assert combine_cfg(gen, 2 * gen, None, 2.0, 1.0, kind, 0.0).tolist() == [[0.0, 0.0]]
    nothing = torch.zeros(2, 3)
    assert combine_cfg(nothing, nothing, nothing, 4.0, 1.5, kind, 0.0).tolist() == nothing.tolist()


@pytest.mark.parametrize("kind", RENORM_TYPES)
def test_without_img_the_image_scale_means_nothing(kind: str) -> None:
    gen, text = torch.tensor(GEN), torch.tensor(TEXT)
    a, b = (combine_cfg(gen, text, None, 4.0, s_img, kind, 0.0) for s_img in (1.0, 7.0))
    assert same_bits(a, b)


@pytest.mark.parametrize("kind", RENORM_TYPES)
def test_nothing_is_written(kind: str) -> None:
    inputs = [torch.tensor(rows) for rows in (GEN, TEXT, IMG)]
    before, versions = [t.clone() for t in inputs], [t._version for t in inputs]
    result = combine_cfg(inputs[0], inputs[1], inputs[2], 4.0, 1.5, kind, 0.0)
    assert all(map(same_bits, inputs, before)) and [t._version for t in inputs] == versions
    assert result.data_ptr() not in [t.data_ptr() for t in inputs]


@pytest.mark.parametrize("kind", RENORM_TYPES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 16), (16, 1), (64, 16)])
def test_shapes(kind: str, shape: tuple[int, int]) -> None:
    gen, text, img = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0)).unbind()
    for image in (None, img):
        assert combine_cfg(gen, text, image, 4.0, 1.5, kind, 0.0).shape == shape


def test_norms_are_those_of_torch_norm() -> None:
    """Which is what Bagel and the engines call."""
    gen, text = torch.randn(2, 64, 16, generator=torch.Generator().manual_seed(0)).unbind()
    for dtype in (torch.float32, torch.bfloat16):
        g, t = gen.to(dtype), text.to(dtype)
        guided = t + 4.0 * (g - t)
        for kind, how in (("global", {}), ("channel", {"dim": -1, "keepdim": True})):
            factor = (torch.norm(g, **how) / (torch.norm(guided, **how) + EPS)).clamp(min=0.0, max=1.0)
            assert same_bits(combine_cfg(g, t, None, 4.0, 1.0, kind, 0.0), guided * factor)


def combine(gen: Tensor, text: Tensor, img: Tensor | None = None, kind: str = "global") -> Tensor:
    return combine_cfg(gen, text, img, 4.0, 1.5, kind, 0.0)


def test_what_is_refused() -> None:
    a = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="renorm_type is 'Global', expected global, channel or text_channel"):
        combine(a, a, kind="Global")
    for name, text, img in (("text", a.bfloat16(), None), ("img", a, a.bfloat16())):
        with pytest.raises(ValueError, match=rf"{name} is torch.bfloat16 \(2, 3\), gen is torch.float32 \(2, 3\); "):
            combine(a, text, img)
    # Broadcasting would make something of these.
    for text, img in ((a[:1], None), (a, a[:, :1])):
        with pytest.raises(ValueError, match="; the branches must agree"):
            combine(a, text, img)
