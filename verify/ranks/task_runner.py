"""Whoever runs tasks on ranks: a pool of local workers, the processes of a launcher, or one replica of these."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from verify.ranks.failure.status import RankStatus

Watcher = Callable[[list[RankStatus]], None]


@dataclass(frozen=True)
class TaskCall:
    """One task for all ranks.

    Attributes:
        task: an importable function; its first argument is a :class:`verify.ranks.rank.Rank`.
        arguments: the same for every rank; tensors arrive on the CPU.
        each: further arguments of each rank, in rank order; None for none.
        name: what the task is called in reports.
        timeout: seconds for all ranks together, from when they are up and their GPUs leased.
        watch: called about ten times a second with where each rank is.
    """

    task: Callable[..., Any]
    arguments: tuple[Any, ...]
    each: Sequence[tuple[Any, ...]] | None
    name: str
    timeout: float
    watch: Watcher | None

    def arguments_of(self, rank: int) -> tuple[Any, ...]:
        """All arguments of one rank."""
        return (*self.arguments, *(self.each[rank] if self.each else ()))


class TaskRunner(ABC):
    """Runs tasks on ranks."""

    @property
    def groups(self) -> Sequence[TaskRunner]:
        """The CFG groups in the order of replicas: itself where there is one."""
        return (self,)

    def renew(self) -> bool:
        """Puts fresh processes in place of those whose state was spoilt; False where that cannot be done."""
        return False

    def run(
        self,
        task: Callable[..., Any],
        *arguments: Any,
        each: Sequence[tuple[Any, ...]] | None = None,
        name: str = "",
        timeout: float = 300.0,
        watch: Watcher | None = None,
    ) -> list[Any]:
        """Runs ``task(rank, *arguments)`` on every rank and returns the results in rank order.

        Arguments as the attributes of :class:`TaskCall`; ``name`` is the function's by default.

        Raises:
            BadInput: a rank refused what it was given.
            Unjudged: a rank could not do it on this machine, or its GPUs were not free.
            RankFailure: a rank died, raised or hung. Workers are then replaced by the next call; launched processes
                can run nothing more.
            KeyboardInterrupt: a launcher ended all processes, and none had failed.
        """
        name = name or getattr(task, "__qualname__", "task")
        return self.run_call(TaskCall(task, arguments, each, name, timeout, watch))

    @abstractmethod
    def run_call(self, call: TaskCall) -> list[Any]:
        """As :meth:`run`."""
