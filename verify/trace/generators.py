"""The states of the random generators that a loop can draw from, at every step.

A digest of a CPU generator costs microseconds. A GPU generator is a seed and an offset that lie on the host, so that
looking at it waits for no device.
"""

from __future__ import annotations

import ctypes
import hashlib
import random
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch
from torch import Tensor

# Moments before a loop's first step: before the target prepared the request, and before the loop and its first
# evaluation began.
BEFORE_PREPARING, BEFORE_LOOP, BEFORE_EVALUATING = -3, -2, -1
PYTHON, NUMPY, CPU, GPU = "Python's random", "NumPy's random", "PyTorch's CPU generator", "PyTorch's GPU generator"
GLOBALS = (PYTHON, NUMPY, CPU, GPU)


@dataclass(frozen=True)
class GeneratorHistory:
    """The digests of every generator's state on one rank, at each moment at which one had changed.

    Attributes:
        states: for each generator the moments of change and the digests from then on, in order. A moment is a step,
            after which the digest was taken, or one of those before the loop.
    """

    states: Mapping[str, tuple[tuple[int, str], ...]] = field(default_factory=dict)

    def at(self, name: str, moment: int) -> str | None:
        """The digest at that moment; None where the generator was not there yet."""
        return next((digest for when, digest in reversed(self.states.get(name, ())) if when <= moment), None)

    def moved(self, name: str, moment: int) -> bool:
        """Whether the generator's state changed between that moment and the one before it, or was first seen there."""
        return any(when == moment for when, _ in self.states.get(name, ()))

    def moved_in_loop(self, name: str) -> bool:
        """Whether the loop changed the generator's state."""
        return any(when > BEFORE_LOOP for when, _ in self.states.get(name, ()))


class GeneratorWatch:
    """Keeps a :class:`GeneratorHistory` while a loop runs."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._states: dict[str, list[tuple[int, str]]] = {}

    def look(self, moment: int, shown: Mapping[str, Any] | None = None) -> None:
        """Notes what has changed by ``moment``; ``shown``: generators that the loop or its target shows, by name."""
        if self._device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return
        own = {f"generator {name}": state_of(each) for name, each in (shown or {}).items()}
        found = dict(_globals(self._device)) | own
        for name, state in found.items():
            history = self._states.setdefault(name, [])
            digest = hashlib.sha256(state).hexdigest()[:16]
            if not history or history[-1][1] != digest:
                history.append((moment, digest))

    def history(self) -> GeneratorHistory:
        """What has been seen."""
        return GeneratorHistory({name: tuple(states) for name, states in self._states.items()})


def _globals(device: torch.device) -> Iterator[tuple[str, bytes]]:
    version, words, gauss = random.getstate()
    yield PYTHON, array("I", words).tobytes() + repr((version, gauss)).encode()
    yield NUMPY, _of_numpy(numpy.random.get_state(legacy=False))
    yield CPU, _bytes(torch.get_rng_state())
    if device.type == "cuda":
        yield GPU, _bytes(torch.cuda.get_rng_state(device))


def is_generator(value: Any) -> bool:
    """Whether it is a random generator of PyTorch, NumPy or Python."""
    return isinstance(value, (torch.Generator, numpy.random.Generator, numpy.random.RandomState, random.Random))


def state_of(generator: Any) -> bytes:
    """The state of one generator, as bytes that are alike in every process.

    Raises:
        TypeError: it is no generator that is known.
    """
    if isinstance(generator, torch.Generator):
        return _bytes(generator.get_state())
    if isinstance(generator, numpy.random.Generator):
        return _of_numpy(generator.bit_generator.state)
    if isinstance(generator, numpy.random.RandomState):
        return _of_numpy(generator.get_state(legacy=False))
    if isinstance(generator, random.Random):
        return repr(generator.getstate()).encode()
    raise TypeError(f"a generator shown is a {type(generator).__name__}, expected one of PyTorch, NumPy or Python")


def _bytes(state: Tensor) -> bytes:
    """The bytes of a tensor on the host."""
    return ctypes.string_at(state.data_ptr(), state.nbytes)


def _of_numpy(state: Any) -> bytes:
    if isinstance(state, Mapping):
        return b"".join(name.encode() + _of_numpy(state[name]) for name in sorted(state))
    return state.tobytes() if isinstance(state, numpy.ndarray) else repr(state).encode()
