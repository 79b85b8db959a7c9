"""Seeded weights: equal bits on every device, and branches that differ enough for a fault to show.

PyTorch's generators give other numbers on a CPU than on a GPU, and their grids depend on the GPU model. So weights come
from an integer hash of (seed, parameter, index) and exact float operations, in a fraction of a second for 14 billion.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator

import torch
from torch import Tensor

from verify.bagel.config import BagelConfig
from verify.bagel.model import BagelModel, sincos_2d

_CHUNK = 1 << 24
_LOW_32 = 0xFFFFFFFF

# Strength of the direction that the image's queries share with the keys of text. Text is a few dozen of thousands of
# keys: without it, dropping the text would hardly change a random network's velocity.
_ATTENTION_TO_TEXT = 2.0


def build_model(config: BagelConfig, dtype: torch.dtype, device: torch.device, seed: int) -> BagelModel:
    """A model with seeded weights, made where it stays. The same seed gives the same bits on any device."""
    with torch.device("meta"):
        model = BagelModel(config).to(dtype)
    model = allocate(model, device)
    for name, parameter in model.named_parameters():
        _fill(name, parameter, config, seed)
    return model


def allocate(model: BagelModel, device: torch.device) -> BagelModel:
    """A model that has shapes only, with memory on ``device``, not yet filled and for inference.

    As ``to_empty``, whose copying of strides imports a library for symbolic shapes, and with it half a second.
    """
    model._apply(lambda p: torch.empty(p.shape, dtype=p.dtype, device=device))  # type: ignore[no-untyped-call]
    return model.requires_grad_(False).eval()


def seeded_parameters(
    config: BagelConfig, dtype: torch.dtype, device: torch.device, seed: int
) -> Iterator[tuple[str, Tensor]]:
    """Name and value of each parameter of :func:`build_model`, one at a time: for a model that is built elsewhere."""
    with torch.device("meta"):
        model = BagelModel(config).to(dtype)
    for name, parameter in model.named_parameters():
        tensor = torch.empty(parameter.shape, dtype=dtype, device=device)
        _fill(name, tensor, config, seed)
        yield name, tensor


def _fill(name: str, parameter: Tensor, config: BagelConfig, seed: int) -> None:
    if name == "latent_pos_embed":
        parameter.copy_(sincos_2d(config.latent_side, config.hidden))
        return
    scale, offset = _distribution(name, parameter)
    key = zlib.crc32(f"{seed}/{name}".encode())
    flat = parameter.view(-1)
    for start, values in seeded_uniform(flat.numel(), key, parameter.device):
        flat[start : start + len(values)].copy_(values * scale + offset)
    if name.endswith(("gen.self_attn.q_proj.bias", "und.self_attn.k_proj.bias")):
        # Only the slow half of the rotary channels: the rotation between a text position and the image's leaves it be.
        half = config.head_dim // 2
        pairs = parameter.view(-1, 2, half)
        pairs[:, :, half // 2 :] += _ATTENTION_TO_TEXT


def _distribution(name: str, parameter: Tensor) -> tuple[float, float]:
    """Half-width and centre of the uniform distribution of one parameter."""
    if "norm" in name:
        return 0.1, 1.0
    if name.endswith("bias"):
        return 0.1, 0.0
    gain = 1.0
    if name == "embed_tokens":
        return math.sqrt(3.0), 0.0
    if name.endswith(("v_proj.weight", "o_proj.weight")):
        gain = 1.5
    # Variance gain^2 / fan_in keeps the spread of what passes through.
    return gain * math.sqrt(3.0 / parameter.shape[-1]), 0.0


def seeded_uniform(count: int, key: int, device: torch.device) -> Iterator[tuple[int, Tensor]]:
    """``count`` float32 values in [-1, 1) in chunks ``(start, values)``, equal bits on every device.

    The hash is lowbias32 (https://github.com/skeeto/hash-prospector); its top 24 bits are exact in float32.
    """
    for start in range(0, count, _CHUNK):
        x = torch.arange(start, min(start + _CHUNK, count), device=device, dtype=torch.int64)
        x = (x * 2 + 1) * 0x9E3779B1 + key & _LOW_32
        x = (x ^ (x >> 16)) * 0x7FEB352D & _LOW_32
        x = (x ^ (x >> 15)) * 0x846CA68B & _LOW_32
        x = x ^ (x >> 16)
        yield start, ((x >> 8) - (1 << 23)).to(torch.float32) * 2.0**-23
