"""Where the network rounds: each formula against a restatement in NumPy, bit for bit.

bfloat16 is restated as float32 numbers that are rounded to 8 bits after each operation. Three results of PyTorch are
taken as they are, because a sum's order and a library's last bit are its own: the mean of squares where the sum is not
exact, and ``pow``, ``cos`` and ``sin`` in float32; these are held to float64 within a few last places.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from verify.bagel import arithmetic
from verify.bagel.arithmetic import norm_and_rotate, rms_norm, rotate, rotation_at
from verify.bagel.config import PRESETS
from verify.bagel.context import empty_context, prefill_image
from verify.bagel.layers import Attention, DecoderLayer, attend, in_row_order, in_streams
from verify.bagel.model import BagelModel, latent_places
from verify.bagel.weights import build_model
from verify.bits import same_bits

Array = NDArray[np.float32]
CPU = torch.device("cpu")
DTYPES = [torch.bfloat16, torch.float32]
TINY = PRESETS["tiny"].config
EPS = 1e-6
ONE = np.float32(1)


pytestmark = pytest.mark.usefixtures("no_grad")


def random(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).mul(1.7).to(dtype)


def numbers(tensor: Tensor) -> Array:
    """The tensor's numbers, exactly."""
    assert tensor.dtype in DTYPES
    array: Array = tensor.float().numpy()
    return array


def to_bf16(x: Array) -> Array:
    """Rounded to 8 significant bits, ties to even: on the integer that holds the number."""
    bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return rounded.astype(np.uint32).view(np.float32)


def rounding_to(dtype: torch.dtype) -> Callable[[Array], Array]:
    return to_bf16 if dtype is torch.bfloat16 else lambda x: x.astype(np.float32)


def held(found: Tensor, expected: Array) -> None:
    """Bit for bit, in the dtype that was found."""
    assert same_bits(found.contiguous(), torch.from_numpy(expected.copy()).to(found.dtype))
    np.testing.assert_array_equal(rounding_to(found.dtype)(expected), expected)


def normed(x: Array, weight: Array, mean: Array, to: Callable[[Array], Array]) -> Array:
    """The normalised value is stored, then its product with the weight."""
    normalised = to(x * (ONE / np.sqrt(mean + np.float32(EPS))))
    return to(normalised * weight)


def turned(x: Array, cos: Array, sin: Array, to: Callable[[Array], Array]) -> Array:
    """Two products are stored, then their sum."""
    half = x.shape[-1] // 2
    partner = np.concatenate([-x[..., half:], x[..., :half]], -1)
    return to(to(x * cos) + to(partner * sin))


def mean_of_squares(x: Tensor) -> Array:
    return numbers(x.float().pow(2).mean(-1, keepdim=True))


def test_the_restatement_rounds_as_pytorch_does() -> None:
    every = np.arange(0, 1 << 32, 977, dtype=np.uint32).view(np.float32)
    every = every[np.abs(every) < 3e38]
    ties = np.array([1.00390625, 1.01171875, -1.00390625, 3.0e-40], dtype=np.float32)
    for x in (every, ties):
        held(torch.from_numpy(x).bfloat16(), to_bf16(x))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [16, 64, 128, 512])
def test_rms_norm_where_the_sum_is_exact(dtype: torch.dtype, size: int) -> None:
    """Small integers: no order of summation rounds, so that nothing of PyTorch's is needed."""
    x = torch.randint(-60, 61, (50, size), generator=torch.Generator().manual_seed(size)).to(dtype)
    weight = random(size, seed=1, dtype=dtype)
    mean = (numbers(x).astype(np.float64) ** 2).mean(-1, keepdims=True).astype(np.float32)
    held(rms_norm(x, weight, EPS), normed(numbers(x), numbers(weight), mean, rounding_to(dtype)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [24, 128, 3584])
def test_rms_norm(dtype: torch.dtype, size: int) -> None:
    x, weight = random(40, size, seed=2, dtype=dtype), random(size, seed=3, dtype=dtype)
    mean = mean_of_squares(x)
    exact = (numbers(x).astype(np.float64) ** 2).mean(-1, keepdims=True)
    assert (np.abs(mean - exact) <= (size + 2) * 2.0**-24 * exact).all()
    found = rms_norm(x, weight, EPS)
    held(found, normed(numbers(x), numbers(weight), mean, rounding_to(dtype)))
    if dtype is torch.bfloat16:  # One rounding, at the end, is another formula.
        assert not same_bits(found, F.rms_norm(x, (size,), weight, EPS))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [16, 64, 128])
def test_rotation(dtype: torch.dtype, head_dim: int) -> None:
    """Frequencies are rounded reciprocals of rounded powers, angles rounded products; cosines and sines are stored."""
    places = torch.tensor([0, 1, 2, 77, 1000])
    frequencies = numbers(arithmetic._frequencies(head_dim, 1e6, torch.float32, CPU))
    exact = 1e6 ** -(np.arange(0, head_dim, 2) / head_dim)
    assert np.abs(frequencies / exact - 1).max() < 2.0**-20
    powers = numbers(1e6 ** (torch.arange(0, head_dim, 2).float() / head_dim))
    np.testing.assert_array_equal(frequencies, ONE / powers)
    angles = torch.from_numpy(places.numpy().astype(np.float32)[:, None, None] * frequencies)
    to = rounding_to(dtype)
    cos, sin = to(numbers(angles.cos())), to(numbers(angles.sin()))
    for found, function in ((cos, np.cos), (sin, np.sin)):
        assert np.abs(found - function(numbers(angles).astype(np.float64))).max() < 2.0**-8
    by_torch = rotation_at(places, head_dim, 1e6, dtype)
    assert all(x.dtype is dtype and x.shape == (5, 1, head_dim) for x in by_torch)
    held(by_torch[0], np.concatenate([cos, cos], -1))
    held(by_torch[1], np.concatenate([-sin, sin], -1))
    x = random(5, 3, head_dim, seed=4, dtype=dtype)
    expected = turned(numbers(x), np.concatenate([cos, cos], -1), np.concatenate([sin, sin], -1), to)
    held(rotate(x, by_torch), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wide", [False, True], ids=["text", "latents"])
def test_norm_and_rotation_of_queries_and_keys(dtype: torch.dtype, wide: bool) -> None:
    """A pass over latents rounds to the network's dtype once, at the end; one over text after every operation."""
    places = torch.tensor([9]) if wide else torch.arange(6)
    x, weight = random(6, 4, 16, seed=5, dtype=dtype), random(16, seed=6, dtype=dtype)
    rotation = rotation_at(places, 16, 1e6, dtype)
    cos, sin = (numbers(part) for part in rotation)
    sin = np.concatenate([-sin[..., :8], sin[..., 8:]], -1)
    store = rounding_to(dtype)
    to = rounding_to(torch.float32) if wide else store
    expected = store(turned(normed(numbers(x), numbers(weight), mean_of_squares(x), to), cos, sin, to))
    found = norm_and_rotate(x, weight, EPS, rotation, wide)
    held(found, expected)
    if dtype is torch.bfloat16:
        assert not same_bits(found, norm_and_rotate(x, weight, EPS, rotation, not wide))


def test_which_pass_is_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    project = Attention.project

    def projected(self: Attention, x: Tensor, rotation: arithmetic.Rotation, wide: bool) -> object:
        seen.append(wide)
        return project(self, x, rotation, wide)

    monkeypatch.setattr(Attention, "project", projected)
    model = build_model(TINY, torch.bfloat16, CPU, seed=1)
    nothing = empty_context(model)
    prefill_image(model, nothing, random(6, TINY.latent_channels, seed=7, dtype=torch.float32), (2, 3))
    assert seen == [True] * 2 * TINY.layers
    seen.clear()
    model.decode([model.embed_tokens[:3]], torch.arange(3), nothing)
    assert seen == [False] * TINY.layers


# Row order


def test_rows_are_start_marker_latents_end_marker() -> None:
    markers, latents = torch.tensor([[1.0], [2.0]]), torch.tensor([[7.0], [8.0], [9.0]])
    rows = in_row_order([markers, latents])
    assert rows.flatten().tolist() == [1, 7, 8, 9, 2]
    assert [x.flatten().tolist() for x in in_streams(rows, 2)] == [[1, 2], [7, 8, 9]]
    assert in_row_order([latents]) is latents
    assert in_streams(latents, 1) == [latents]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_final_norm_and_llm2vae_see_every_row_in_order(dtype: torch.dtype) -> None:
    model = build_model(TINY, dtype, CPU, seed=1)
    inputs: dict[str, Tensor] = {}
    for name in ("norm.und", "norm.gen", "llm2vae"):
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, operands, name=name: inputs.__setitem__(name, operands[0])
        )
    x_t = random(6, TINY.latent_channels, seed=8, dtype=torch.float32)
    places, now = latent_places((2, 3), TINY.latent_side, CPU), model.time_embedder(torch.ones(1))
    velocity = BagelModel.velocity(model, x_t, now, places, empty_context(model))
    to = rounding_to(dtype)

    def final(expert: str) -> Array:
        x = inputs[f"norm.{expert}"]
        return normed(numbers(x), numbers(model.state_dict()[f"norm.{expert}.weight"]), mean_of_squares(x), to)

    und, gen = final("und"), final("gen")
    assert (und.shape, gen.shape) == ((2, TINY.hidden), (6, TINY.hidden))
    held(inputs["llm2vae"], np.concatenate([und[:1], gen, und[1:]]))
    weight, bias = model.llm2vae.weight, model.llm2vae.bias
    assert same_bits(velocity, F.linear(inputs["llm2vae"], weight, bias)[1:-1])


def test_attention_sees_the_rows_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys of the first layer: the markers' rows are first and last."""
    seen: list[Tensor] = []

    def attended(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        seen.append(k)
        return attend(q, k, v, mask)

    monkeypatch.setattr("verify.bagel.layers.attend", attended)
    model = build_model(TINY, torch.bfloat16, CPU, seed=1)
    prefill_image(model, empty_context(model), random(6, TINY.latent_channels, seed=9, dtype=torch.float32), (2, 3))
    layer = model.layers[0]
    assert isinstance(layer, DecoderLayer)
    rotation = rotation_at(torch.zeros(1), TINY.head_dim, TINY.rope_theta, torch.bfloat16)
    _, markers, _ = layer.und.self_attn.project(layer.und.input_layernorm(model.markers()), rotation, wide=True)
    assert seen[0].shape == (TINY.kv_heads, 8, TINY.head_dim)
    assert same_bits(seen[0][:, 0], markers[0]) and same_bits(seen[0][:, -1], markers[1])
