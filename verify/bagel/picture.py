"""The picture that a latent stands for: the decoder of FLUX's autoencoder, which Bagel was trained with, and PNG.

Architecture: the decoder of latent diffusion (arXiv 2112.10752), from ``ae.safetensors`` with 16 latent channels; scale
and shift as published with FLUX. Its geometry is read from the shapes of its tensors. Computed in float32.

Legend: Z latent channels, h and w latent rows and columns, C channels, H and W pixels.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from verify.bagel.config import BagelConfig
from verify.bagel.tensor_files import DTYPES, TensorFiles, readable, regular_file
from verify.errors import BadInput

DECODER_FILE = "ae.safetensors"
# A latent token holds 2 x 2 latent pixels, and a latent pixel stands for 8 x 8 pixels.
_PATCH, _SHRINK = 2, 8
_SCALE, _SHIFT = 0.3611, 0.1159
_GROUPS, _EPS = 32, 1e-6
_PREFIX = "decoder."


def picture_of(
    latent: Float[Tensor, "tokens channels"], grid: tuple[int, int], checkpoint: str | None, config: BagelConfig
) -> tuple[bytes, str]:
    """A PNG file, and what its reader must know.

    Raises:
        BadInput: the checkpoint's decoder cannot be used.
    """
    z = _latent_pixels(latent.to(torch.float32), grid)
    if checkpoint is not None:
        return png(_pixels(_Decoder.of(Path(checkpoint), config, latent.device)(z))), ""
    colours = F.interpolate(z[None, :3], scale_factor=float(_SHRINK), mode="nearest")[0]
    return png(_pixels(colours)), "weights are seeded, so the picture is noise: three latent channels as colours"


def require_decoder(checkpoint: Path, config: BagelConfig) -> None:
    """Checks what headers tell of a checkpoint's decoder.

    Raises:
        BadInput: it cannot be used.
    """
    with ExitStack() as stack:
        _names(TensorFiles([regular_file(checkpoint / DECODER_FILE)], stack, "--image"), checkpoint, config)


def _latent_pixels(latent: Float[Tensor, "tokens channels"], grid: tuple[int, int]) -> Float[Tensor, "z h w"]:
    """A token's channels are its rows, its columns and, innermost, the latent channels."""
    rows, columns = grid
    patches = latent.view(rows, columns, _PATCH, _PATCH, -1)
    return patches.permute(4, 0, 2, 1, 3).reshape(-1, rows * _PATCH, columns * _PATCH)


def _pixels(image: Float[Tensor, "3 H W"]) -> UInt8[Tensor, "H W 3"]:
    """From [-1, 1] to bytes."""
    return ((image * 0.5 + 0.5).clamp(0, 1) * 255).to(torch.uint8).permute(1, 2, 0).cpu()


class _Decoder:
    """From latent pixels to pixels."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = weights

    @classmethod
    def of(cls, checkpoint: Path, config: BagelConfig, device: torch.device) -> _Decoder:
        """The decoder of a checkpoint, on ``device``."""
        with ExitStack() as stack:
            tensors = TensorFiles([regular_file(checkpoint / DECODER_FILE)], stack, "--image")
            names = _names(tensors, checkpoint, config)
            return cls({name: tensors.read(_PREFIX + name).to(device, torch.float32) for name in names})

    def __call__(self, z: Float[Tensor, "z h w"]) -> Float[Tensor, "3 H W"]:
        x = self._convolved(z[None] / _SCALE + _SHIFT, "conv_in")
        x = self._residual(x, "mid.block_1")
        x = self._attended(x, "mid.attn_1")
        x = self._residual(x, "mid.block_2")
        for level in reversed(range(len(_levels(self._weights)))):
            for block in range(_count(self._weights, f"up.{level}.block.")):
                x = self._residual(x, f"up.{level}.block.{block}")
            if f"up.{level}.upsample.conv.weight" in self._weights:
                x = self._convolved(F.interpolate(x, scale_factor=2.0, mode="nearest"), f"up.{level}.upsample.conv")
        return self._convolved(F.silu(self._normed(x, "norm_out")), "conv_out")[0]

    def _convolved(self, x: Float[Tensor, "1 C H W"], name: str) -> Float[Tensor, "1 D H W"]:
        weight = self._weights[f"{name}.weight"]
        return F.conv2d(x, weight, self._weights[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def _normed(self, x: Float[Tensor, "1 C H W"], name: str) -> Float[Tensor, "1 C H W"]:
        return F.group_norm(x, _GROUPS, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"], _EPS)

    def _residual(self, x: Float[Tensor, "1 C H W"], name: str) -> Float[Tensor, "1 D H W"]:
        """Two convolutions, each after a norm and SiLU; a 1 x 1 convolution beside them where widths differ."""
        inner = self._convolved(F.silu(self._normed(x, f"{name}.norm1")), f"{name}.conv1")
        inner = self._convolved(F.silu(self._normed(inner, f"{name}.norm2")), f"{name}.conv2")
        shortcut = f"{name}.nin_shortcut"
        return inner + (self._convolved(x, shortcut) if f"{shortcut}.weight" in self._weights else x)

    def _attended(self, x: Float[Tensor, "1 C H W"], name: str) -> Float[Tensor, "1 C H W"]:
        """Every latent pixel attends to every other, with one head."""
        normed = self._normed(x, f"{name}.norm")
        q, k, v = (self._convolved(normed, f"{name}.{part}").flatten(2).transpose(1, 2) for part in "qkv")
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        return x + self._convolved(out, f"{name}.proj_out")


def _names(tensors: TensorFiles, checkpoint: Path, config: BagelConfig) -> list[str]:
    """The decoder's tensors, without what stands before their names.

    Raises:
        BadInput: one that must be there is not, or the decoder is of another latent.
    """
    names = [name.removeprefix(_PREFIX) for name in tensors.shapes if name.startswith(_PREFIX)]
    where = str(checkpoint / DECODER_FILE)
    convolutions = ["conv_in", "conv_out", *(f"mid.attn_1.{part}" for part in ("q", "k", "v", "proj_out"))]
    norms = ["norm_out", "mid.attn_1.norm"]
    blocks = ["mid.block_1", "mid.block_2"]
    for level in range(len(_levels(names)) or 1):
        blocks += [f"up.{level}.block.{block}" for block in range(_count(names, f"up.{level}.block.") or 1)]
        convolutions += [f"up.{level}.upsample.conv"] if level else []
    for block in blocks:
        convolutions += [f"{block}.conv1", f"{block}.conv2"]
        norms += [f"{block}.norm1", f"{block}.norm2"]
    for name in (f"{part}.{kind}" for part in (*convolutions, *norms) for kind in ("weight", "bias")):
        if name not in names:
            expected = f"the decoder of FLUX's autoencoder, with a tensor {_PREFIX}{name}"
            raise BadInput.of("--image", where, expected, "fetch the file again")
    wrong = [name for name in names if tensors.dtypes[_PREFIX + name] not in DTYPES]
    if wrong:
        found = tensors.dtypes[_PREFIX + wrong[0]]
        raise BadInput.of(f"dtype of {readable(wrong[0])} in {where!r}", found, ", ".join(DTYPES), "convert it")
    told, channels = tensors.shapes[f"{_PREFIX}conv_in.weight"], config.latent_channels // _PATCH**2
    if len(told) != 4 or told[1] != channels:
        expected = f"(width, {channels}, 3, 3), since the model has {config.latent_channels} channels a latent token"
        raise BadInput.of(f"shape of conv_in in {where!r}", told, expected, "use the model's own file")
    return names


def _levels(names: Iterable[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("up.")}


def _count(names: Iterable[str], prefix: str) -> int:
    return len({name[len(prefix) :].split(".")[0] for name in names if name.startswith(prefix)})


def png(pixels: UInt8[Tensor, "H W 3"]) -> bytes:
    """A PNG file (ISO/IEC 15948) of 8-bit RGB without filters. Equal pixels give equal bytes."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.numpy().tobytes() for row in pixels.contiguous())
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
