"""Ranks as threads of one process: a group in memory, for loops and recorders that need no real processes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from verify.protocols import Group
from verify.schedule import ALL_GATHER, BROADCAST
from verify.text import call_text

T = TypeVar("T")
PATIENCE = 20.0


class ThreadGroup:
    """One thread's place among the others; nothing goes through torch.distributed."""

    exchanges: ClassVar = {ALL_GATHER: (), BROADCAST: ()}

    def __init__(self, rank: int, slots: list[Tensor | None], barrier: threading.Barrier) -> None:
        self.rank, self.world_size = rank, len(slots)
        self._slots, self._barrier = slots, barrier

    def _exchange(self, tensor: Tensor) -> list[Tensor]:
        self._slots[self.rank] = tensor.clone()
        self._barrier.wait(PATIENCE)
        given = [slot.clone() for slot in self._slots if slot is not None]
        self._barrier.wait(PATIENCE)  # Nobody may write the next tensor before all have read this one.
        return given

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        return self._exchange(tensor)

    def broadcast(self, tensor: Tensor, src: int = 0) -> Tensor:
        given = self._exchange(tensor)[src]
        return tensor if self.rank == src else tensor.copy_(given)


def on_every_rank(world_size: int, run: Callable[[Group], T]) -> list[T]:
    """What ``run`` returns on each rank. The first exception ends the others and is raised."""
    slots: list[Tensor | None] = [None] * world_size
    barrier = threading.Barrier(world_size)
    failed: list[BaseException] = []

    def one(rank: int) -> T:
        try:
            with torch.no_grad():
                return run(ThreadGroup(rank, slots, barrier))
        except BaseException as error:
            failed.append(error)
            barrier.abort()
            raise

    with ThreadPoolExecutor(world_size) as threads:
        futures = [threads.submit(one, rank) for rank in range(world_size)]
    if failed:
        raise failed[0]
    return [future.result() for future in futures]


class LinearDenoiser:
    """Velocities that depend on the branch, the step and every element, with rounding in each."""

    def __init__(self, branches: Sequence[str], dtype: torch.dtype = torch.float32) -> None:
        self.calls: list[tuple[int, str]] = []
        self.contexts = {branch: torch.linspace(-1, 1, 6).view(2, 3) + place for place, branch in enumerate(branches)}
        self._dtype = dtype

    def velocity(self, x_t: Tensor, step: int, branch: str) -> Tensor:
        self.calls.append((step, branch))
        return (x_t * 0.3 + self.contexts[branch].mean() * 0.7 + 0.01 * step).to(self._dtype)


class Notes:
    """A status that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.counted: list[str] = []

    def finished(self, step: int) -> None:
        self.said.append(f"finished {step}")

    def activity(self, words: str) -> None:
        self.said.append(words)

    def collective(self, name: str, number: int, step: int) -> None:
        self.counted.append(call_text(name, number, step))
        self.activity(self.counted[-1])
