"""Evaluations of the network that the loop did not ask for through its denoiser.

A loop may hold on to the network and call it directly. What it uses is then not what was recorded. A hook on one module
that every evaluation must pass sees such a call; it costs microseconds in each evaluation, whatever the network's size.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


class NetworkWatch:
    """Counts, step by step, how often the network under a denoiser runs without having been asked."""

    def __init__(self, denoiser: Any) -> None:
        network = next(networks_of(denoiser), None)
        self._modules = [] if network is None else [network, *_entries(network)]
        self._counts: Counter[int] = Counter()
        self._step = 0
        self._inside = threading.local()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Hooks are there while the block runs."""
        hooks = [module.register_forward_pre_hook(self._entered) for module in self._modules]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def asked(self) -> Iterator[None]:
        """What this thread runs within was asked for through the denoiser."""
        self._inside.depth = getattr(self._inside, "depth", 0) + 1
        try:
            yield
        finally:
            self._inside.depth -= 1

    def step(self, finished: int) -> None:
        """``finished`` is done: what follows belongs to the next step."""
        self._step = finished + 1

    def counts(self, steps: int) -> tuple[int, ...]:
        """For each step, how many modules were entered unasked; what follows the last step counts to it."""
        late = sum(count for step, count in self._counts.items() if step >= steps)
        return tuple(self._counts[step] + (late if step == steps - 1 else 0) for step in range(steps))

    def _entered(self, module: nn.Module, inputs: Any) -> None:
        if not getattr(self._inside, "depth", 0):
            self._counts[self._step] += 1


def networks_of(denoiser: Any, depth: int = 3) -> Iterator[nn.Module]:
    """The networks that a denoiser holds, itself or in the denoisers that it wraps."""
    if isinstance(denoiser, nn.Module):
        yield denoiser
        return
    for value in list(getattr(denoiser, "__dict__", {}).values()):
        if isinstance(value, nn.Module):
            yield value
        elif depth and hasattr(type(value), "velocity"):
            yield from networks_of(value, depth - 1)


def _entries(network: nn.Module) -> list[nn.Module]:
    """Modules one of which every evaluation enters: the children, and the first of those that are mere lists."""
    found = []
    for child in network.children():
        while isinstance(child, _CONTAINERS) and len(child):
            child = next(child.children())
        found.append(child)
    return found
