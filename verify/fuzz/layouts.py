"""Tensors of a case, as they may lie in an engine's memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float as Floats
from torch import Tensor

from verify.bits import bits_of
from verify.fuzz.case import Bits, Case, Float

_GAP = 3


@dataclass(frozen=True)
class Laid:
    """The branches of a case in memory.

    Attributes:
        branches: gen, text and perhaps img, as the combine takes them.
        buffers: the whole memory that they are views of, padding included.
    """

    branches: Sequence[Floats[Tensor, "tokens channels"]]
    buffers: Sequence[Tensor]

    def snapshot(self) -> list[Tensor]:
        """The bytes of every buffer, now."""
        return [bits_of(buffer).clone() for buffer in self.buffers]

    def unchanged_since(self, before: Sequence[Tensor]) -> bool:
        """Whether every byte is as it was."""
        return all(torch.equal(bits_of(b), old) for b, old in zip(self.buffers, before, strict=True))


def tensor_of(bits: Bits, form: Float, device: torch.device) -> Tensor:
    """A fresh contiguous tensor with these bits."""
    return torch.from_numpy(bits.view(f"int{form.width}").copy()).to(device).view(form.torch)


def dense(case: Case, device: torch.device) -> list[Floats[Tensor, "tokens channels"]]:
    """The branches in fresh contiguous memory, as a gather returns them."""
    return [tensor_of(bits, case.form, device) for bits in case.bits().values()]


def lay_out(case: Case, device: torch.device) -> Laid:
    """The branches as the case's layout says.

    ``contiguous``: fresh memory. ``transposed``: channels are rows in memory. ``sliced``: each begins ``offset``
    elements into a buffer of its own. ``gathered``: all in one buffer, as all_gather_into_tensor leaves them.
    ``columns``: a window of columns of a wider matrix. ``strided``: every other column. ``expanded``: one row, repeated
    with stride 0.
    """
    return place(dense(case, device), case.layout, case.offset)


def place(branches: Sequence[Floats[Tensor, "tokens channels"]], layout: str, offset: int) -> Laid:
    """Copies ``branches`` into memory of that layout."""
    if layout == "contiguous":
        return Laid(branches, branches)
    if layout == "gathered":
        size = branches[0].numel() + _GAP
        buffer = _filled(branches[0], offset + size * len(branches))
        views = [_window(buffer, offset + k * size, branch) for k, branch in enumerate(branches)]
        return Laid([view.copy_(branch) for view, branch in zip(views, branches, strict=True)], [buffer])
    pairs = [_alone(branch, layout, offset) for branch in branches]
    return Laid([view for view, _ in pairs], [buffer for _, buffer in pairs])


def _alone(branch: Tensor, layout: str, offset: int) -> tuple[Tensor, Tensor]:
    """The view that holds ``branch``, and the buffer under it."""
    tokens, channels = branch.shape
    if layout == "expanded":
        row = branch[:1].clone()
        return row.expand(tokens, channels), row
    if layout == "sliced":
        buffer = _filled(branch, offset + branch.numel() + _GAP)
        view = _window(buffer, offset, branch)
    elif layout == "transposed":
        buffer = _filled(branch, branch.numel()).view(channels, tokens)
        view = buffer.t()
    elif layout == "columns":
        buffer = _filled(branch, tokens * (channels + offset + _GAP)).view(tokens, channels + offset + _GAP)
        view = buffer[:, offset : offset + channels]
    elif layout == "strided":
        buffer = _filled(branch, tokens * channels * 2).view(tokens, channels * 2)
        view = buffer[:, ::2]
    else:
        raise ValueError(f"no layout is called {layout!r}")
    return view.copy_(branch), buffer


def _filled(like: Tensor, count: int) -> Tensor:
    """Memory that must not be read: NaN everywhere."""
    return torch.full((count,), float("nan"), dtype=like.dtype, device=like.device)


def _window(buffer: Tensor, start: int, like: Tensor) -> Tensor:
    return buffer[start : start + like.numel()].view(like.shape)
