"""Seeded weights: integer-hash exact, so their bits may be pinned."""

from __future__ import annotations

import zlib

import pytest
import torch

from verify.bagel import weights
from verify.bagel.config import PRESETS
from verify.bagel.weights import build_model, seeded_uniform
from verify.bits import bits_of, same_bits

CPU = torch.device("cpu")
TINY = PRESETS["tiny"].config


def by_hand(index: int, key: int) -> float:
    """The same number by Python's integers: lowbias32 of the index, its top 24 bits as a fraction in [-1, 1)."""
    x = ((2 * index + 1) * 0x9E3779B1 + key) % 2**32
    x = (x ^ (x >> 16)) * 0x7FEB352D % 2**32
    x = (x ^ (x >> 15)) * 0x846CA68B % 2**32
    x ^= x >> 16
    return ((x >> 8) - 2**23) / 2**23


@pytest.mark.parametrize("key", [0, 1, 0xDEADBEEF, 2**32 - 1])
def test_uniform_values_are_the_hash(key: int) -> None:
    ((start, values),) = seeded_uniform(1000, key, CPU)
    assert start == 0
    assert values.dtype == torch.float32
    assert values.tolist() == [by_hand(i, key) for i in range(1000)]


def test_uniform_values_are_spread_evenly() -> None:
    values = torch.cat([chunk for _, chunk in seeded_uniform(1 << 16, 7, CPU)])
    assert values.min() >= -1
    assert values.max() < 1
    assert len(values.unique()) > 0.99 * len(values)
    assert torch.histc(values, 16, -1, 1).sub(4096).abs().max() < 6 * 4096**0.5


@pytest.mark.parametrize("chunk", [4099, 32768])
def test_bits_do_not_depend_on_the_chunk(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    whole = build_model(TINY, torch.float32, CPU, seed=3)
    monkeypatch.setattr(weights, "_CHUNK", chunk)
    pieces = [len(values) for _, values in seeded_uniform(70_000, 0, CPU)]
    assert pieces == [chunk] * (70_000 // chunk) + [70_000 % chunk]
    chunked = dict(build_model(TINY, torch.float32, CPU, seed=3).named_parameters())
    for name, parameter in whole.named_parameters():
        assert same_bits(parameter, chunked[name]), name


@pytest.mark.parametrize(
    ("name", "float32", "bfloat16"),
    [
        ("embed_tokens", 0x5AA1547E, 0xAE84400C),
        ("layers.0.und.self_attn.k_proj.bias", 0x5145AE30, 0x3219110D),
        ("layers.1.gen.self_attn.q_proj.bias", 0xE33396E0, 0x44714855),
        ("layers.1.gen.mlp.down_proj.weight", 0xCCA9761B, 0x80E92B25),
        ("norm.gen.weight", 0xAADD0415, 0x361E850F),
        ("llm2vae.weight", 0x2F58FBC6, 0xC93F2027),
        ("time_embedder.mlp.2.bias", 0x39F788CA, 0x72DFABB8),
    ],
)
def test_pinned_bits(name: str, float32: int, bfloat16: int) -> None:
    """They hold on every machine: nothing but integers, one exact conversion, one product and one sum."""
    for dtype, expected in ((torch.float32, float32), (torch.bfloat16, bfloat16)):
        parameter = build_model(TINY, dtype, CPU, seed=1).get_parameter(name)
        assert zlib.crc32(bits_of(parameter).numpy().tobytes()) == expected, dtype


def test_every_seed_and_parameter_has_its_own_values() -> None:
    first, second = (dict(build_model(TINY, torch.float32, CPU, seed).named_parameters()) for seed in (1, 2))
    seeded = [name for name in first if name != "latent_pos_embed"]
    assert same_bits(first["latent_pos_embed"], second["latent_pos_embed"])
    digests = [zlib.crc32(bits_of(model[name]).numpy().tobytes()) for name in seeded for model in (first, second)]
    assert len(set(digests)) == 2 * len(seeded) == 2 * 67


def test_weights_are_finite_and_of_the_scale_that_keeps_the_spread() -> None:
    for name, parameter in build_model(TINY, torch.float32, CPU, seed=1).named_parameters():
        assert parameter.isfinite().all(), name
        if name.endswith("weight") and "norm" not in name:
            gain = 1.5 if name.endswith(("v_proj.weight", "o_proj.weight")) else 1.0
            assert parameter.std().item() == pytest.approx(gain / parameter.shape[1] ** 0.5, rel=0.05), name
        elif "norm" in name:
            assert 0.9 <= parameter.min() <= parameter.max() < 1.1, name


@pytest.mark.gpu
def test_bits_on_a_gpu_are_those_on_the_cpu() -> None:
    there = dict(build_model(TINY, torch.bfloat16, torch.device("cuda"), seed=1).named_parameters())
    for name, parameter in build_model(TINY, torch.bfloat16, CPU, seed=1).named_parameters():
        assert same_bits(parameter, there[name].cpu()), name
