"""The tensors and plain values that a denoiser holds in its own fields, and what shows that one was written to."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def version_of(tensor: Tensor) -> int:
    """PyTorch's count of writes to a tensor; tensors made in inference mode have none."""
    return -1 if tensor.is_inference() else tensor._version


def leaves_of(denoiser: Any) -> Iterator[tuple[str, Any]]:
    """The tensors and plain values in a denoiser's fields: within containers and data classes, and in denoisers that it
    wraps. What other objects hold, a scheduler say, is theirs.
    """
    for name, value in list(getattr(denoiser, "__dict__", {}).items()):
        if isinstance(value, nn.Module):
            continue
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, (Mapping, list, tuple)) or dataclasses.is_dataclass(value):
            yield from leaves_within(name, value)
        elif hasattr(type(value), "velocity"):
            yield from leaves_of(value)


def leaves_within(name: str, value: Any, depth: int = 4) -> Iterator[tuple[str, Any]]:
    """The tensors and plain values in one value, with names such as ``history[1]``; what else it holds is left out."""
    if isinstance(value, (Tensor, int, float, str, bool, type(None), torch.dtype, torch.device)):
        yield name, value
    elif not depth:
        return
    elif isinstance(value, Mapping):
        for key, item in list(value.items()):
            yield from leaves_within(f"{name}[{key!r}]", item, depth - 1)
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            yield from leaves_within(f"{name}[{number}]", item, depth - 1)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from leaves_within(f"{name}.{field.name}", getattr(value, field.name, None), depth - 1)


def stamps_of(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """What changes when a leaf is written to or replaced."""
    return {
        name: _Stamp(leaf, version_of(leaf)) if isinstance(leaf, Tensor) else repr(leaf)
        for name, leaf in leaves.items()
    }


class _Stamp:
    """A tensor and its count of writes."""

    def __init__(self, tensor: Tensor, version: int) -> None:
        self._tensor, self._version = tensor, version

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Stamp):
            return False
        same = self._tensor is other._tensor or self._tensor.data_ptr() == other._tensor.data_ptr()
        return same and self._version == other._version

    __hash__ = None  # type: ignore[assignment]
