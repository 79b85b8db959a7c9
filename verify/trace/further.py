"""State beside ``x_t`` that a loop or its target shows: a scheduler's history, a step cache, momentum.

It is copied on its device after each step, and compared by its bytes. A tensor that is shown again unchanged, as a
history shows its older entries, is kept once.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import numpy
import torch
from torch import Tensor

from verify.trace.contract import plain_copy
from verify.trace.generators import is_generator
from verify.trace.leaves import leaves_within, version_of

Leaf = Tensor | int | float | str | bool | None
# What a rank showed after each step, and before the first one under -1: by the name it was shown under, then by leaf.
Further = Mapping[int, Mapping[str, Mapping[str, Leaf]]]


class FurtherWatch:
    """Keeps what is shown."""

    def __init__(self) -> None:
        self._seen: dict[int, dict[str, dict[str, Leaf]]] = {}
        # By identity and count of writes of the tensor that was copied.
        self._copies: dict[int, tuple[weakref.ref[Tensor], int, Tensor]] = {}

    def look(self, moment: int, shown: Mapping[str, Any]) -> None:
        """Keeps ``shown`` as it is at ``moment``. Never waits for the device."""
        for name, value in shown.items():
            if is_generator(value):
                continue
            leaves = {leaf: self._kept(each) for leaf, each in _leaves(name, value)}
            self._seen.setdefault(moment, {})[name] = leaves

    def _kept(self, leaf: Any) -> Leaf:
        if not isinstance(leaf, Tensor):
            return leaf if isinstance(leaf, (int, float, str, bool, type(None))) else str(leaf)
        known = self._copies.get(id(leaf))
        if known is not None and known[0]() is leaf and known[1] == version_of(leaf) and not leaf.is_inference():
            return known[2]
        copy = plain_copy(leaf)
        self._copies[id(leaf)] = weakref.ref(leaf), version_of(leaf), copy
        return copy

    def seen(self) -> Further:
        """All that was shown."""
        return dict(self._seen)


def generators_in(shown: Mapping[str, Any]) -> dict[str, Any]:
    """The random generators among what is shown."""
    return {name: value for name, value in shown.items() if is_generator(value)}


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, numpy.generic):
        value = value.item()
    if isinstance(value, numpy.ndarray):
        value = torch.from_numpy(value)
    if isinstance(value, (list, tuple)):
        yield f"length of {name}", len(value)
    yield from leaves_within(name, value)
