"""A decoder of pictures, small enough to be written by a test: FLUX's names, 32 channels, seeded weights."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

WIDTHS, BLOCKS = (32, 64, 64, 64), 2


def decoder_tensors(latent_channels: int = 4, seed: int = 0) -> dict[str, Tensor]:
    """Every tensor of a decoder with four levels, in bfloat16."""
    tensors: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(seed)

    def put(name: str, *shape: int) -> None:
        fan_in = max(1, torch.Size(shape[1:]).numel())
        tensors[f"decoder.{name}.weight"] = torch.randn(*shape, generator=generator).div(fan_in**0.5).bfloat16()
        tensors[f"decoder.{name}.bias"] = torch.randn(shape[0], generator=generator).mul(0.1).bfloat16()

    def residual(name: str, before: int, after: int) -> None:
        put(f"{name}.norm1", before)
        put(f"{name}.conv1", after, before, 3, 3)
        put(f"{name}.norm2", after)
        put(f"{name}.conv2", after, after, 3, 3)
        if before != after:
            put(f"{name}.nin_shortcut", after, before, 1, 1)

    width = WIDTHS[-1]
    put("conv_in", width, latent_channels, 3, 3)
    residual("mid.block_1", width, width)
    put("mid.attn_1.norm", width)
    for part in ("q", "k", "v", "proj_out"):
        put(f"mid.attn_1.{part}", width, width, 1, 1)
    residual("mid.block_2", width, width)
    for level in reversed(range(len(WIDTHS))):
        for block in range(BLOCKS):
            residual(f"up.{level}.block.{block}", width, WIDTHS[level])
            width = WIDTHS[level]
        if level:
            put(f"up.{level}.upsample.conv", width, width, 3, 3)
    put("norm_out", width)
    put("conv_out", 3, width, 3, 3)
    return tensors


def write_decoder(folder: Path, latent_channels: int = 4) -> None:
    """Writes ``ae.safetensors``, with a tensor of the encoder, which decoding does not need."""
    save_file(decoder_tensors(latent_channels) | {"encoder.conv_in.bias": torch.ones(3)}, folder / "ae.safetensors")
