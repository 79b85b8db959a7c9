"""One replica of several, taken alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from verify.ranks.task_runner import TaskCall, TaskRunner


class Replica(TaskRunner):
    """One replica of a launch. All replicas do what it is asked for, and its own results are returned."""

    def __init__(self, all_ranks: TaskRunner, number: int, ranks: int, count: int) -> None:
        self._all, self._number, self._ranks, self._count = all_ranks, number, ranks, count

    def run_call(self, call: TaskCall) -> list[Any]:
        """``each`` and the results are in the order of this replica's ranks."""
        each = None if call.each is None else [*call.each] * self._count
        results = self._all.run_call(replace(call, each=each))
        return results[self._number * self._ranks : (self._number + 1) * self._ranks]


def replicas_of(all_ranks: TaskRunner, processes: int, ranks: int) -> tuple[Replica, ...]:
    """The replicas that ``processes`` make, of ``ranks`` each."""
    count = processes // ranks
    return tuple(Replica(all_ranks, number, ranks, count) for number in range(count))


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
