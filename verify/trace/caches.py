"""The frozen contexts: what a loop did to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from verify.bits import bits_of, first_difference
from verify.trace.digest import digests
from verify.trace.leaves import version_of
from verify.verdict import Difference


@dataclass(frozen=True)
class CacheRecord:
    """One tensor of one branch's frozen context, before and after the loop.

    Attributes:
        branch: whose context.
        tensor: which of its tensors, e.g. ``keys, layer 3``.
        elements: how many it has.
        before: digest of its bytes before the loop.
        after: digest of its bytes after the loop.
        written_at: the step in which a write was first seen; None where none was, as after the last step.
        difference: the first element that changed.
        touched_at: the step in which a write was seen that was put right before the end; None where none was.
    """

    branch: str
    tensor: str
    elements: int
    before: str
    after: str
    written_at: int | None = None
    difference: Difference | None = None
    touched_at: int | None = None


_SMALL = 1 << 24  # Bytes.


@dataclass
class _Watched:
    branch: str
    name: str
    tensor: Tensor
    pristine: Tensor
    digest: str
    version: int = 0
    writes: list[tuple[int, Tensor | bool]] = field(default_factory=list)
    silent: list[tuple[int, Tensor]] = field(default_factory=list)


class CacheWatch:
    """Notices writes to contexts: by PyTorch's version counters at each step, by their bytes after the loop.

    Made for one loop, with a copy of every tensor.
    """

    def __init__(self, caches: Mapping[str, Mapping[str, Tensor]]) -> None:
        """``caches``: branch, then name of the tensor. What they hold under a name may be replaced while denoising."""
        self._caches = caches
        shown = [(branch, name, tensor) for branch, of in caches.items() for name, tensor in of.items()]
        found = digests(tensor for _, _, tensor in shown)
        self._watched = [_Watched(*each, each[2].clone(), known) for each, known in zip(shown, found, strict=True)]

        # Then bytes are compared in every step: a write through NumPy or a pointer moves no counter.
        sizes = [w.tensor.nbytes for w in self._watched if w.tensor.is_cpu]
        self._are_small = len(sizes) == len(self._watched) and sum(sizes) < _SMALL

    def begin(self) -> None:
        """A loop is about to start."""
        for w in self._watched:
            w.version, w.writes, w.silent = version_of(w.tensor), [], []

    def look(self, step: int) -> None:
        """Notes ``step`` for each tensor written since the last look. Never waits for the device."""
        for w in self._watched:
            if self._now(w) is not w.tensor:
                w.writes.append((step, True))
            elif version_of(w.tensor) != w.version:
                w.version = version_of(w.tensor)
                # Views of one tensor count each other's writes: bytes tell whose it was.
                w.writes.append((step, (bits_of(w.tensor) != bits_of(w.pristine)).any()))
            elif self._are_small:
                w.silent.append((step, (bits_of(w.tensor) != bits_of(w.pristine)).any()))

    def _now(self, w: _Watched) -> Tensor | None:
        """What the context holds under that name now: an append does not write to a tensor, it puts another there."""
        return self._caches[w.branch].get(w.name)

    def records(self) -> tuple[CacheRecord, ...]:
        """One record for each tensor."""
        held = [self._now(w) for w in self._watched]
        after = iter(digests(now for now in held if now is not None))
        records = []
        for w, now in zip(self._watched, held, strict=True):
            found = "gone" if now is None else next(after)
            changed = now is None or found != w.digest or (now.shape, now.dtype) != (w.pristine.shape, w.pristine.dtype)
            alike = now is not None and (now.shape, now.dtype) == (w.pristine.shape, w.pristine.dtype)
            records.append(
                CacheRecord(
                    branch=w.branch,
                    tensor=w.name,
                    elements=w.pristine.numel(),
                    before=w.digest,
                    after=found,
                    written_at=min((step for step, seen in (*w.writes, *w.silent) if seen), default=None)
                    if changed
                    else None,
                    difference=first_difference(w.pristine, now) if changed and alike and now is not None else None,
                    touched_at=w.writes[0][0] if w.writes and not changed else None,
                )
            )
        return tuple(records)
