"""The frozen contexts: what a loop did to them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from verify.bits import Difference, bits_of, first_difference, same_bits


@dataclass(frozen=True)
class CacheRecord:
    """One tensor of one branch's frozen context, before and after the loop.

    Attributes:
        branch: whose context.
        tensor: which of its tensors, e.g. ``keys, layer 3``.
        elements: how many it has.
        before: SHA-256 of its bytes before the loop.
        after: SHA-256 of its bytes after the loop.
        written_at: the step in which a write was first seen; None where none was, as after the last step.
        difference: the first element that changed.
    """

    branch: str
    tensor: str
    elements: int
    before: str
    after: str
    written_at: int | None = None
    difference: Difference | None = None


@dataclass
class _Watched:
    branch: str
    name: str
    tensor: Tensor
    pristine: Tensor
    digest: str
    version: int = 0
    writes: list[tuple[int, Tensor | bool]] = field(default_factory=list)


class CacheWatch:
    """Notices writes to contexts: by PyTorch's version counters at each step, by their bytes after the loop.

    Made once for a denoiser, with a copy of every tensor; used by one loop after another.
    """

    def __init__(self, caches: Mapping[str, Mapping[str, Tensor]]) -> None:
        """``caches``: branch, then name of the tensor. What they hold under a name may be replaced while denoising."""
        self._caches = caches
        self._watched = [
            _Watched(branch, name, tensor, tensor.clone(), digest(tensor))
            for branch, tensors in caches.items()
            for name, tensor in tensors.items()
        ]

    def begin(self) -> None:
        """A loop is about to start."""
        for w in self._watched:
            w.version, w.writes = w.tensor._version, []

    def look(self, step: int) -> None:
        """Notes ``step`` for each tensor written since the last look. Never waits for the device."""
        for w in self._watched:
            if self._now(w) is not w.tensor:
                w.writes.append((step, True))
            elif w.tensor._version != w.version:
                w.version = w.tensor._version
                # Views of one tensor count each other's writes: bytes tell whose it was.
                w.writes.append((step, (bits_of(w.tensor) != bits_of(w.pristine)).any()))

    def _now(self, w: _Watched) -> Tensor | None:
        """What the context holds under that name now: an append does not write to a tensor, it puts another there."""
        return self._caches[w.branch].get(w.name)

    def records(self) -> tuple[CacheRecord, ...]:
        """One record a tensor. Bytes are compared on the device, and hashed again only where they differ.

        What was written is put right, so that the next loop finds the contexts as they were made.
        """
        records = []
        for w in self._watched:
            now = self._now(w)
            changed = now is None or not same_bits(now, w.pristine)
            alike = now is not None and (now.shape, now.dtype) == (w.pristine.shape, w.pristine.dtype)
            records.append(
                CacheRecord(
                    branch=w.branch,
                    tensor=w.name,
                    elements=w.pristine.numel(),
                    before=w.digest,
                    after=w.digest if not changed else "gone" if now is None else digest(now),
                    written_at=next((step for step, seen in w.writes if seen), None) if changed else None,
                    difference=first_difference(w.pristine, now) if changed and alike and now is not None else None,
                )
            )
            if changed or now is not w.tensor:
                w.tensor.copy_(w.pristine)
            if now is not w.tensor:
                branch = self._caches[w.branch]
                assert isinstance(branch, MutableMapping), f"the {w.branch} cache was replaced and cannot be put back"
                branch[w.name] = w.tensor
        return tuple(records)


def digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes in row-major order."""
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8).cpu().numpy()
    return hashlib.sha256(flat.data).hexdigest()
