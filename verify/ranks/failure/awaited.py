"""The collective that ranks wait in for a peer that never joined it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from verify.ranks.failure.calls import Calls
from verify.ranks.failure.report import RankReport, RankState
from verify.schedule import ALL_GATHER, ALL_REDUCE, BROADCAST
from verify.text import place_of_call

_WAITING = (RankState.HUNG, RankState.WAITING)


@dataclass(frozen=True)
class Awaited:
    """The first collective that some ranks called and others never joined.

    Attributes:
        collective: which, as the ranks call it: ``all_gather 1 of step 40``.
        waiting: the ranks that called it and do not go on.
        missing: the ranks that never joined it.
        finished: those of the missing that have finished their task.
        where: how surely they wait in it. ``in``: their hosts stand in it, or the missing ranks have finished, so that
            all earlier collectives are over. ``in or before``: it is a gather, and hosts run ahead of their devices:
            the device of a missing rank may be stuck in an earlier collective, or have ended with work left to do.
            ``near``: it is a broadcast, which may be over already for its source and for ranks that have received.
    """

    collective: str
    waiting: tuple[int, ...]
    missing: tuple[int, ...]
    finished: tuple[int, ...] = ()
    where: str = "in"

    def __str__(self) -> str:
        verb = "waits" if len(self.waiting) == 1 else "wait"
        have = "has" if len(self.finished) == 1 else "have"
        note = f" ({_ranks(self.finished)} {have} finished)" if self.finished else ""
        missing = _ranks(self.missing)
        return f"{_ranks(self.waiting)} {verb} {self.where} {self.collective}, which {missing} never joined{note}"

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "collective": self.collective,
            "waiting": list(self.waiting),
            "missing": list(self.missing),
            "said": str(self),
        }


def awaited(reports: Sequence[RankReport]) -> Awaited | None:
    """The collective that ranks wait in for a peer of their replica; of several, the one that comes first.

    None if nobody waits. None if every rank has called it, because then a slow network or device is as likely as a
    missing peer. None if it is unknown what some rank has called: it went on meanwhile, or it has fallen silent.
    """
    replicas: dict[int, list[RankReport]] = {}
    for report in reports:
        replicas.setdefault(report.replica, []).append(report)
    found = [one for ranks in replicas.values() if (one := _awaited_in(ranks)) is not None]
    return min(found, key=lambda one: place_of_call(one.collective) or (0, 0), default=None)


def _awaited_in(reports: Sequence[RankReport]) -> Awaited | None:
    """The same of one replica: from how many collectives each rank has called, wherever its host stands by now."""
    called = [(report, report.calls) for report in reports if report.calls is not None]
    if len(called) < len(reports):
        return None
    fewest = min(calls.count for _, calls in called)
    missing = [report for report, calls in called if calls.count == fewest]
    if len(missing) == len(reports):
        return _by_activity(called)
    waiting: dict[str, list[RankReport]] = {}
    for report, calls in called:
        if report.state in _WAITING and calls.count > fewest:
            waiting.setdefault(calls.name(fewest + 1), []).append(report)
    return None if "" in waiting else _first(waiting, lambda there: missing)  # What is no longer kept has no name.


def _by_activity(called: Sequence[tuple[RankReport, Calls]]) -> Awaited | None:
    """Of ranks that have called equally many: from where each says that it stands."""
    waiting: dict[str, list[RankReport]] = {}
    for report, _ in called:
        if report.state in _WAITING and in_collective(report):
            waiting.setdefault(report.activity, []).append(report)

    def missing(there: list[RankReport]) -> list[RankReport]:
        return [r for r, calls in called if there[0].activity not in (r.activity, calls.name(calls.count))]

    return _first(waiting, missing)


def _first(
    waiting: dict[str, list[RankReport]], missing_from: Callable[[list[RankReport]], list[RankReport]]
) -> Awaited | None:
    """Of the collectives that ranks wait in, the first; None if nobody is missing from it."""
    if not waiting:
        return None
    collective, there = min(waiting.items(), key=lambda item: place_of_call(item[0]) or (item[1][0].step, 0))
    missing = missing_from(there)
    if not missing:
        return None
    gathers = collective.startswith((ALL_GATHER, ALL_REDUCE))
    stand_there = all(report.activity == collective for report in there)
    all_before_is_over = all(report.state == RankState.FINISHED for report in missing)
    where = "in" if stand_there or (gathers and all_before_is_over) else "in or before" if gathers else "near"
    return Awaited(
        collective,
        tuple(sorted(report.rank for report in there)),
        tuple(sorted(report.rank for report in missing)),
        tuple(sorted(report.rank for report in missing if report.state == RankState.FINISHED)),
        where,
    )


def in_collective(report: RankReport) -> bool:
    """Whether the rank stands in a collective."""
    return report.activity.startswith((ALL_GATHER, ALL_REDUCE, BROADCAST))


def _ranks(ranks: Sequence[int]) -> str:
    *others, last = map(str, ranks)
    return f"ranks {', '.join(others)} and {last}" if others else f"rank {last}"
