"""Objects sent between launched processes over gloo: tasks from global rank 0 to all, results back to it.

A group of its own beside the one that loops use, over NCCL or gloo: what a loop leaves undone there does not get in the
way. Messages are pickled and come from this job's own processes only, never from a file.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from verify.ranks.local import wire

_SIZE, _BYTES = 1, 2


class Transfer:
    """The control group of all launched processes. Every wait in it is bounded by whoever watches from outside."""

    def __init__(self, store: Any, rank: int, world_size: int, timeout: timedelta) -> None:
        """Connects to all other processes."""
        self._rank = rank
        # Beside the default group, which holds one replica's ranks only and could not make a group of all.
        self._group: Any = dist.ProcessGroupGloo(store, rank, world_size, timeout)

    def to_all(self, message: Any = None) -> Any:
        """Global rank 0's message, on every process."""
        data = _tensor(wire.to_bytes(message)) if self._rank == 0 else torch.empty(0, dtype=torch.uint8)
        size = torch.tensor([len(data)])
        self._group.broadcast(size, 0).wait()
        if self._rank:
            data = torch.empty(int(size), dtype=torch.uint8)
        self._group.broadcast(data, 0).wait()
        return message if self._rank == 0 else wire.from_bytes(data.numpy().tobytes())

    def to_first(self, message: Any) -> None:
        """Sends to global rank 0."""
        data = _tensor(wire.to_bytes(message))
        self._group.send([torch.tensor([len(data)])], 0, _SIZE).wait()
        self._group.send([data], 0, _BYTES).wait()

    def from_one(self, rank: int) -> Any:
        """On global rank 0: what ``rank`` sends. One at a time, so that memory is that of one trace more than kept."""
        size = torch.zeros(1, dtype=torch.int64)
        self._group.recv([size], rank, _SIZE).wait()
        data = torch.empty(int(size), dtype=torch.uint8)
        self._group.recv([data], rank, _BYTES).wait()
        return wire.from_bytes(data.numpy().tobytes())

    def as_sent(self, message: Any) -> Any:
        """Global rank 0's own message as another's would arrive: tensors on the CPU."""
        return wire.from_bytes(wire.to_bytes(message))


def _tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
