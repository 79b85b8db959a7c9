"""Whoever runs tasks on ranks, and one replica of several taken alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from verify.ranks.local.pool import Watcher


class Ranks(Protocol):
    """Whoever runs tasks on ranks: a ``RankPool`` of local workers, or a ``Crew`` of launched processes."""

    @property
    def groups(self) -> Sequence[Ranks]:
        """Its CFG groups, in the order of replicas: itself where there is one."""
        ...

    def run(
        self,
        task: Callable[..., Any],
        *arguments: Any,
        each: Sequence[tuple[Any, ...]] | None = None,
        name: str = "",
        timeout: float = 300.0,
        watch: Watcher | None = None,
    ) -> list[Any]:
        """As :meth:`verify.ranks.local.pool.RankPool.run`."""
        ...


class Replica:
    """One replica of a crew. All replicas do what it is asked for, and its results are returned."""

    def __init__(self, crew: Ranks, number: int, ranks: int, count: int) -> None:
        self._crew, self._number, self._ranks, self._count = crew, number, ranks, count

    @property
    def groups(self) -> tuple[Replica, ...]:
        """It is one CFG group."""
        return (self,)

    def run(
        self,
        task: Callable[..., Any],
        *arguments: Any,
        each: Sequence[tuple[Any, ...]] | None = None,
        name: str = "",
        timeout: float = 300.0,
        watch: Watcher | None = None,
    ) -> list[Any]:
        """As ``Crew.run``, with ``each`` and the results in the order of this replica's ranks."""
        own = None if each is None else [*each] * self._count
        results = self._crew.run(task, *arguments, each=own, name=name, timeout=timeout, watch=watch)
        return results[self._number * self._ranks : (self._number + 1) * self._ranks]


def replicas_of(crew: Ranks, processes: int, ranks: int) -> tuple[Replica, ...]:
    """The replicas that ``processes`` make, of ``ranks`` each."""
    count = processes // ranks
    return tuple(Replica(crew, number, ranks, count) for number in range(count))


def described(hosts: Sequence[str], ranks: int) -> list[dict[str, Any]]:
    """Each replica's number, global ranks and their hosts, JSON values only.

    Args:
        hosts: of every process, in the order of global ranks.
        ranks: of one replica.
    """
    firsts = range(0, len(hosts), ranks)
    return [
        {"replica": number, "ranks": [*range(first, first + ranks)], "hosts": [*hosts[first : first + ranks]]}
        for number, first in enumerate(firsts)
    ]
