"""Latents of several parts, as video and audio that are denoised together: packed into one tensor, part after part.

A trace holds one tensor a step, whose bytes are compared. Its :class:`Packing` says which part an element belongs to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from verify.bits import describe, same_bits
from verify.errors import BadInput
from verify.protocols import State
from verify.trace.contract import checked_latent

Latents = Tensor | Mapping[str, Tensor]


def parts_of(latents: Any) -> dict[str, Tensor]:
    """The parts of latents by name, in the order of their names; a plain tensor is one part without a name."""
    if not isinstance(latents, Mapping):
        return {"": latents}
    return {name: latents[name] for name in sorted(latents)}


def packed(latents: Any) -> Any:
    """All parts in one tensor: of their dtype, if they have one, else as bytes; a plain tensor as it is."""
    if not isinstance(latents, Mapping):
        return latents
    flat = [part.detach().resolve_conj().resolve_neg().flatten() for part in parts_of(latents).values()]
    if len({part.dtype for part in flat}) > 1:
        flat = [part.contiguous().view(torch.uint8) for part in flat]
    return torch.cat(flat)


def each(latents: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Latents of the same parts, each of them changed."""
    if not isinstance(latents, Mapping):
        return change(latents)
    return {name: change(part) for name, part in latents.items()}


@dataclass(frozen=True)
class Packing:
    """Where each part lies in a packed tensor.

    Attributes:
        names: of the parts, in order.
        shapes: of each.
        dtypes: of each.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]

    @classmethod
    def of(cls, latents: Any) -> Packing | None:
        """The packing of latents of several parts; None for a plain tensor."""
        if not isinstance(latents, Mapping):
            return None
        parts = parts_of(latents)
        return cls(tuple(parts), tuple(tuple(p.shape) for p in parts.values()), tuple(p.dtype for p in parts.values()))

    def unpacked(self, flat: Tensor) -> dict[str, Tensor]:
        """The parts of a packed tensor; of several packed tensors, stacked along their first dimension."""
        as_bytes = len(set(self.dtypes)) > 1
        sizes = [
            torch.Size(shape).numel() * (dtype.itemsize if as_bytes else 1)
            for shape, dtype in zip(self.shapes, self.dtypes, strict=True)
        ]
        ends, found = [*accumulate(sizes)], {}
        for name, shape, dtype, end, size in zip(self.names, self.shapes, self.dtypes, ends, sizes, strict=True):
            part = flat[..., end - size : end].clone(memory_format=torch.contiguous_format)
            found[name] = part.view(dtype).reshape(*flat.shape[:-1], *shape)
        return found

    def checked(self, what: str, latents: Any, device: torch.device) -> Tensor:
        """``latents``, packed.

        Raises:
            BadInput: they have not the parts of ``x_0``.
        """
        if not isinstance(latents, Mapping) or set(latents) != set(self.names):
            found = ", ".join(map(str, latents)) if isinstance(latents, Mapping) else describe(latents)
            raise BadInput.of(what, found, f"a mapping with {', '.join(self.names)}, as x_0", "pass every part")
        kinds = zip(self.names, self.shapes, self.dtypes, strict=True)
        return packed(
            {
                name: checked_latent(f"{what}[{name!r}]", latents[name], torch.Size(shape), dtype, device)
                for name, shape, dtype in kinds
            }
        )

    def first_unlike(self, a: Tensor, b: Tensor) -> tuple[str, Tensor, Tensor] | None:
        """The first part that differs between two packed tensors, from both; None where none does."""
        ours, theirs = self.unpacked(a), self.unpacked(b)
        return next(((n, ours[n], theirs[n]) for n in self.names if not same_bits(ours[n], theirs[n])), None)


class LatentsAsShown:
    """What a loop may show and return: latents like its ``x_0``."""

    def __init__(self, x_0: Any) -> None:
        self.packing = Packing.of(x_0)
        whole: Tensor = packed(x_0)
        self._dtype, self._device = whole.dtype, whole.device

    def checked(self, what: str, latents: Any, shape: torch.Size) -> Tensor:
        """``latents`` in one tensor, which has ``shape`` where it is of one part.

        Raises:
            BadInput: they are not like ``x_0``.
        """
        if self.packing is not None:
            return self.packing.checked(what, latents, self._device)
        return checked_latent(what, latents, shape, self._dtype, self._device)

    def returned(self, final: Any, shape_of: Callable[[Any], torch.Size]) -> Tensor:
        """What a loop returned, in one tensor of the shape that ``shape_of`` gives it.

        Raises:
            BadInput: it is not like ``x_0``.
        """
        latents, _ = self.without_others(final)
        return self.checked("what the loop returned", latents, shape_of(latents))

    def without_others(self, latents: Any, state: State = None) -> tuple[Any, State]:
        """Of a tuple that begins with a latent like ``x_0``, the others are further state."""
        if self.packing is None and isinstance(latents, tuple) and latents and isinstance(latents[0], Tensor):
            return latents[0], {**{f"latent {n}": each for n, each in enumerate(latents[1:], 2)}, **(state or {})}
        return latents, state
