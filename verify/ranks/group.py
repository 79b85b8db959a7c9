"""The CFG-parallel process group over torch.distributed."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# Longer than any task may take: the controller bounds the wait and can say who was missing, the library cannot.
LIBRARY_TIMEOUT = timedelta(days=1)


def can_permute() -> bool:
    """Whether this PyTorch can make a group whose ranks are not in the order of global ranks."""
    return "sort_ranks" in inspect.signature(dist.new_group).parameters


def new_group(members: Sequence[int]) -> dist.ProcessGroup:
    """A group of ``members``, global ranks, in this order where PyTorch can. Its members alone call it."""
    options: dict[str, Any] = {"sort_ranks": False} if can_permute() else {}
    group: dist.ProcessGroup = dist.new_group(
        list(members), timeout=LIBRARY_TIMEOUT, use_local_synchronization=True, **options
    )
    return group


class ProcessGroup:
    """Ranks that gather and broadcast tensors: gloo on CPU, NCCL with a GPU a rank, gloo where ranks share a GPU."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        """Wraps ``group``, or the default group of this process."""
        self._group = group
        self._ranks = dist.get_process_group_ranks(group) if group is not None else list(range(dist.get_world_size()))
        # A loop may end torch.distributed, and what it has done is still told.
        self._rank, self._world_size = dist.get_rank(group), dist.get_world_size(group)

    @property
    def rank(self) -> int:
        """This process's number in the group."""
        return self._rank

    @property
    def world_size(self) -> int:
        """How many processes there are."""
        return self._world_size

    @property
    def world_ranks(self) -> tuple[int, ...]:
        """The number of each of its processes in torch.distributed's default group."""
        return tuple(self._ranks)

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """Every rank's ``tensor``, in rank order, in fresh contiguous memory.

        A collective moves memory, not elements, so what it is given must be contiguous.
        """
        tensor = tensor.contiguous()
        slots = [torch.empty_like(tensor) for _ in range(self.world_size)]
        dist.all_gather(slots, tensor, group=self._group)
        return slots

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Overwrites ``tensor`` with the sum of every rank's, in place, and returns it.

        Of three ranks or more the library chooses in which order it adds, and the order may decide bits.
        """
        dense = tensor.contiguous()
        dist.all_reduce(dense, group=self._group)
        return tensor if dense is tensor else tensor.copy_(dense)

    def broadcast(self, tensor: Tensor, src: int = 0) -> Tensor:
        """Overwrites ``tensor`` on every rank with that of rank ``src``, in place, and returns it."""
        dense = tensor.contiguous()
        dist.broadcast(dense, self._ranks[src], group=self._group)
        if dense is not tensor and self.rank != src:
            tensor.copy_(dense)
        return tensor


class Alone:
    """The group of the reference loop: one process that sends nothing."""

    rank = 0
    world_size = 1

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensor itself."""
        return [tensor.clone()]

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Nothing to add."""
        return tensor

    def broadcast(self, tensor: Tensor, src: int = 0) -> Tensor:
        """Nothing to do."""
        return tensor
