"""Pictures: the decoder against its definition written out, PNG against a reader of its own, what is refused."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from decoders import BLOCKS, WIDTHS, decoder_tensors, write_decoder
from safetensors.torch import save_file
from torch import Tensor, nn

from verify.bagel.config import PRESETS
from verify.bagel.picture import picture_of, png, require_decoder
from verify.errors import BadInput

TINY = PRESETS["tiny"].config


def read_png(data: bytes) -> np.ndarray:
    """Pixels ``(H, W, 3)`` of an unfiltered 8-bit RGB file whose checksums are right."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, parts = 8, {}
    while at < len(data):
        (size,), kind = struct.unpack(">I", data[at : at + 4]), data[at + 4 : at + 8]
        parts[kind] = data[at + 8 : at + 8 + size]
        assert struct.unpack(">I", data[at + 8 + size : at + 12 + size]) == (zlib.crc32(kind + parts[kind]),)
        at += 12 + size
    assert list(parts) == [b"IHDR", b"IDAT", b"IEND"]
    width, height, *rest = struct.unpack(">IIBBBBB", parts[b"IHDR"])
    assert rest == [8, 2, 0, 0, 0]
    rows = np.frombuffer(zlib.decompress(parts[b"IDAT"]), np.uint8).reshape(height, 1 + 3 * width)
    assert not rows[:, 0].any()
    return rows[:, 1:].reshape(height, width, 3)


class Residual(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(32, before, 1e-6), nn.GroupNorm(32, after, 1e-6)
        self.conv1, self.conv2 = nn.Conv2d(before, after, 3, padding=1), nn.Conv2d(after, after, 3, padding=1)
        if before != after:
            self.nin_shortcut = nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv1(nn.functional.silu(self.norm1(x)))
        inner = self.conv2(nn.functional.silu(self.norm2(inner)))
        beside: Tensor = self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x
        return beside + inner


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, width, 1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (part(h)[0].flatten(1) for part in (self.q, self.k, self.v))
        weights = torch.softmax(q.T @ k / len(q) ** 0.5, -1)
        out: Tensor = x + self.proj_out((v @ weights.T).reshape(x.shape))
        return out


class Decoder(nn.Module):
    """The definition, module by module."""

    def __init__(self, latent_channels: int) -> None:
        super().__init__()
        width = WIDTHS[-1]
        self.conv_in = nn.Conv2d(latent_channels, width, 3, padding=1)
        self.mid = nn.ModuleDict({"block_1": Residual(width, width), "attn_1": Attention(width)})
        self.mid["block_2"] = Residual(width, width)
        levels: list[nn.Module] = []
        for level in reversed(range(len(WIDTHS))):
            blocks = nn.ModuleList()
            for _ in range(BLOCKS):
                blocks.append(Residual(width, WIDTHS[level]))
                width = WIDTHS[level]
            parts = nn.ModuleDict({"block": blocks})
            if level:
                parts["upsample"] = nn.ModuleDict({"conv": nn.Conv2d(width, width, 3, padding=1)})
            levels.insert(0, parts)
        self.up = nn.ModuleList(levels)
        self.norm_out, self.conv_out = nn.GroupNorm(32, width, 1e-6), nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.conv_in(z)
        for name in ("block_1", "attn_1", "block_2"):
            x = self.mid[name](x)
        for level in reversed(self.up):
            for block in level["block"]:  # type: ignore[index]
                x = block(x)
            if "upsample" in level:  # type: ignore[operator]
                x = level["upsample"]["conv"](x.repeat_interleave(2, 2).repeat_interleave(2, 3))  # type: ignore[index]
        out: Tensor = self.conv_out(nn.functional.silu(self.norm_out(x)))
        return out


@torch.no_grad()
def test_the_decoder_is_its_definition(tmp_path: Path) -> None:
    write_decoder(tmp_path)
    decoder = Decoder(4)
    decoder.load_state_dict({name.removeprefix("decoder."): t.float() for name, t in decoder_tensors().items()})
    latent = torch.randn(6, TINY.latent_channels, generator=torch.Generator().manual_seed(0))
    z = torch.empty(1, 4, 4, 6)
    for token in range(6):
        for place in range(16):
            row, column, channel = place // 8, place // 4 % 2, place % 4
            z[0, channel, token // 3 * 2 + row, token % 3 * 2 + column] = latent[token, place]
    expected = (decoder(z / 0.3611 + 0.1159)[0].permute(1, 2, 0) * 0.5 + 0.5).clamp(0, 1) * 255
    data, note = picture_of(latent, (2, 3), str(tmp_path), TINY)
    pixels = read_png(data)
    assert pixels.shape == (32, 48, 3) and note == ""
    assert np.abs(pixels - expected.numpy()).max() < 1.01
    assert pixels.std() > 10
    assert picture_of(latent, (2, 3), str(tmp_path), TINY)[0] == data


def test_seeded_weights_give_noise_and_say_so() -> None:
    latent = torch.randn(6, TINY.latent_channels, generator=torch.Generator().manual_seed(0))
    data, note = picture_of(latent, (2, 3), None, TINY)
    assert "seeded, so the picture is noise" in note
    pixels = read_png(data)
    assert pixels.shape == (32, 48, 3)
    assert (pixels[:8, :8] == pixels[0, 0]).all()
    np.testing.assert_array_equal(pixels[0, 0], ((latent[0, :3] * 0.5 + 0.5).clamp(0, 1) * 255).byte().numpy())


def test_png_keeps_every_pixel() -> None:
    pixels = torch.randint(0, 256, (5, 7, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(read_png(png(pixels)), pixels.numpy())
    np.testing.assert_array_equal(read_png(png(pixels.transpose(0, 1))), pixels.transpose(0, 1).numpy())


def test_decoders_that_cannot_be_used(tmp_path: Path) -> None:
    def refused() -> str:
        with pytest.raises(BadInput) as caught:
            require_decoder(tmp_path, TINY)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "a folder with the file ae.safetensors" in refused()
    write_decoder(tmp_path)
    require_decoder(tmp_path, TINY)
    good = decoder_tensors()
    for name in ("decoder.conv_out.bias", "decoder.mid.attn_1.k.weight", "decoder.up.2.upsample.conv.weight"):
        save_file({key: tensor for key, tensor in good.items() if key != name}, tmp_path / "ae.safetensors")
        assert f"with a tensor {name}" in refused()
    save_file(good | {"decoder.conv_in.bias": torch.ones(64, dtype=torch.int32)}, tmp_path / "ae.safetensors")
    assert "dtype of conv_in.bias" in refused()
    write_decoder(tmp_path, latent_channels=16)
    assert "(64, 16, 3, 3)" in refused()
    (tmp_path / "ae.safetensors").write_text("<html>")
    assert "a whole safetensors file" in refused()
