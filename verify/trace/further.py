"""State beside ``x_t`` that a loop or its target shows: a scheduler's history, a step cache, momentum, generators.

It is copied on its device after each step, and compared by its bytes. A tensor that is shown again unchanged, as a
history shows its older entries, is kept once. A target that can go on from a step is given the copies back.
"""

from __future__ import annotations

import copy
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
# What a rank showed after each step, and before the first one under -1, by the name it was shown under.
Further = Mapping[int, Mapping[str, Any]]
# What a sampler's evaluation at a point of its own is shown under; its number in the step follows.
POINT = "x_t of evaluation "


class SavedGenerator:
    """The state of a generator of PyTorch, which can be sent to another process. No leaf: it is compared elsewhere."""

    def __init__(self, state: Tensor, device: str) -> None:
        self.state, self.device = state, device

    def restored(self) -> torch.Generator:
        """A generator in that state."""
        generator = torch.Generator(self.device)
        generator.set_state(self.state)
        return generator


class FurtherWatch:
    """Keeps what is shown."""

    def __init__(self) -> None:
        self._seen: dict[int, dict[str, Any]] = {}
        # By identity and count of writes of the tensor that was copied.
        self._copies: dict[int, tuple[weakref.ref[Tensor], int, Tensor]] = {}

    def look(self, moment: int, shown: Mapping[str, Any]) -> None:
        """Keeps ``shown`` as it is at ``moment``. Never waits for the device."""
        for name, value in shown.items():
            self._seen.setdefault(moment, {})[name] = self._kept(value)

    def _kept(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._copied(value)
        if isinstance(value, Mapping):
            return {key: self._kept(each) for key, each in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._kept(each) for each in value]
        if isinstance(value, numpy.ndarray):
            return torch.from_numpy(value.copy())
        if isinstance(value, numpy.generic):
            return value.item()
        if isinstance(value, torch.Generator):
            return SavedGenerator(value.get_state(), str(value.device))
        if is_generator(value):
            return copy.deepcopy(value)
        return value if isinstance(value, (int, float, str, bool, type(None))) else repr(value)

    def _copied(self, tensor: Tensor) -> Tensor:
        known = self._copies.get(id(tensor))
        if known is not None and known[0]() is tensor and known[1] == version_of(tensor) and not tensor.is_inference():
            return known[2]
        kept = plain_copy(tensor)
        self._copies[id(tensor)] = weakref.ref(tensor), version_of(tensor), kept
        return kept

    def seen(self) -> Further:
        """All that was shown."""
        return dict(self._seen)


def given_back(kept: Any, device: torch.device) -> Any:
    """What was kept as the loop had it: on ``device``, in memory of its own, with generators that draw."""
    if isinstance(kept, Tensor):
        return kept.to(device, copy=True)
    if isinstance(kept, Mapping):
        return {key: given_back(each, device) for key, each in kept.items()}
    if isinstance(kept, list):
        return [given_back(each, device) for each in kept]
    return kept.restored() if isinstance(kept, SavedGenerator) else copy.deepcopy(kept)


def leaves(name: str, kept: Any) -> Iterator[tuple[str, Leaf]]:
    """The tensors and plain values in one thing shown, and the length of a list; generators are compared elsewhere."""
    if isinstance(kept, list):
        yield f"length of {name}", len(kept)
    yield from leaves_within(name, kept)


def generators_in(shown: Mapping[str, Any]) -> dict[str, Any]:
    """The random generators among what is shown."""
    return {name: value for name, value in shown.items() if is_generator(value)}
