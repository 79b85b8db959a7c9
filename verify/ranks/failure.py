"""What is reported when ranks do not finish a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from verify.errors import Unjudged
from verify.ranks.calls import Calls
from verify.schedule import ALL_GATHER, BROADCAST
from verify.text import step_of_call

_WAITING = ("hung", "waiting")


@dataclass(frozen=True)
class RankReport:
    """What became of one rank.

    Attributes:
        rank: its number.
        state: ``died``, ``raised``, ``hung``, ``waiting`` (for a peer that failed) or ``finished``.
        what: one line: the signal or exit status, the exception, or where it stood still.
        step: the last step it finished; -1 before the first.
        activity: what it was doing: a branch evaluation, a collective.
        trace: its traceback, or the stack of each of its threads.
        output: the end of what it printed.
        where: its replica and host, where there are several; empty where there is one.
        calls: the collectives that it called in this task; None if that is not known, or not up to now.
        replica: which one it belongs to, from 0.
    """

    rank: int
    state: str
    what: str
    step: int = -1
    activity: str = ""
    trace: str = ""
    output: str = ""
    where: str = ""
    calls: Calls | None = None
    replica: int = 0

    @property
    def name(self) -> str:
        """``rank 1``, and where that is."""
        return f"rank {self.rank}" + (f" ({self.where})" if self.where else "")

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        told = {key: value for key, value in asdict(self).items() if key not in ("calls", "replica")}
        return told if self.where else {key: value for key, value in told.items() if key != "where"}


@dataclass(frozen=True)
class Awaited:
    """The first collective that some ranks called and others never joined.

    Attributes:
        collective: which, as the ranks call it: ``all_gather 1 of step 40``.
        waiting: the ranks that called it and do not go on.
        missing: the ranks that never joined it.
        finished: those of the missing that have finished their task.
        here: whether it is known that the others still wait in it. Each gather waits for all; a broadcast may be over
            for its source, which only sends, or for one that has received.
    """

    collective: str
    waiting: tuple[int, ...]
    missing: tuple[int, ...]
    finished: tuple[int, ...] = ()
    here: bool = True

    def __str__(self) -> str:
        verb = "waits" if len(self.waiting) == 1 else "wait"
        where = "in" if self.here else "in or after"
        have = "has" if len(self.finished) == 1 else "have"
        note = f" ({_ranks(self.finished)} {have} finished)" if self.finished else ""
        missing = _ranks(self.missing)
        return f"{_ranks(self.waiting)} {verb} {where} {self.collective}, which {missing} never joined{note}"

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

    None if nobody waits, or if all have called it: then a slow network or device is as likely as a peer that is
    missing.
    """
    replicas: dict[int, list[RankReport]] = {}
    for report in reports:
        replicas.setdefault(report.replica, []).append(report)
    found = [one for ranks in replicas.values() if (one := _by_count(ranks) or _by_activity(ranks)) is not None]
    return min(found, key=lambda one: step_of_call(one.collective) or 0, default=None)


def _by_count(reports: Sequence[RankReport]) -> Awaited | None:
    """From how many collectives each rank has called, wherever its host stands by now."""
    counts = {report.rank: report.calls.count for report in reports if report.calls is not None}
    if len(counts) < len(reports):
        return None
    fewest = min(counts.values())
    waiting: dict[str, list[RankReport]] = {}
    for report in reports:
        if report.state in _WAITING and report.calls is not None and report.calls.count > fewest:
            waiting.setdefault(report.calls.name(fewest + 1), []).append(report)
    waiting.pop("", None)
    missing = [report for report in reports if counts[report.rank] == fewest]
    return _first(waiting, lambda there: missing)


def _by_activity(reports: Sequence[RankReport]) -> Awaited | None:
    """From where each rank says that it stands."""
    waiting: dict[str, list[RankReport]] = {}
    for report in reports:
        if report.state in _WAITING and _in_collective(report):
            waiting.setdefault(report.activity, []).append(report)
    return _first(waiting, lambda there: [r for r in reports if r not in there and not _has_joined(r, there[0])])


def _has_joined(report: RankReport, waiting: RankReport) -> bool:
    """Whether a rank has called the collective that another stands in, as far as is known."""
    if report.calls is None or waiting.calls is None:
        return report.activity == waiting.activity
    return report.calls.name(waiting.calls.count) == waiting.activity


def _first(
    waiting: dict[str, list[RankReport]], missing_from: Callable[[list[RankReport]], list[RankReport]]
) -> Awaited | None:
    """Of the collectives that ranks wait in, the first; None if nobody is missing from it."""
    if not waiting:
        return None
    collective, there = min(waiting.items(), key=lambda item: step_of_call(item[0]) or item[1][0].step)
    missing = missing_from(there)
    if not missing:
        return None
    return Awaited(
        collective,
        tuple(sorted(report.rank for report in there)),
        tuple(sorted(report.rank for report in missing)),
        tuple(sorted(report.rank for report in missing if report.state == "finished")),
        collective.startswith(ALL_GATHER) or all(report.activity == collective for report in there),
    )


def _in_collective(report: RankReport) -> bool:
    return report.activity.startswith((ALL_GATHER, BROADCAST))


def _ranks(ranks: Sequence[int]) -> str:
    *others, last = map(str, ranks)
    return f"ranks {', '.join(others)} and {last}" if others else f"rank {last}"


_MOST_TELLING_FIRST = ("died", "raised", "hung", "waiting", "finished")


def _how_telling(report: RankReport, waiting: Sequence[int]) -> tuple[int, bool, bool, int, int]:
    """Among hung ranks, one that shows no stack (it is stopped) keeps the others waiting; so does one that waits in no
    collective; then comes the one that is furthest behind.
    """
    told, waits = bool(report.trace), report.rank in waiting or _in_collective(report)
    return _MOST_TELLING_FIRST.index(report.state), told, waits, report.step, report.rank


class RankFailure(Unjudged):
    """Some rank did not finish its task."""

    def __init__(
        self, task: str, reports: list[RankReport], seconds: float, results: Mapping[int, Any] | None = None
    ) -> None:
        """``results``: what the ranks that did finish brought back, by rank."""
        self.results = dict(results or {})
        self.task = task
        self.seconds = seconds
        self.awaited = awaited(reports)
        waiting = () if self.awaited is None else self.awaited.waiting
        self.reports = sorted(reports, key=lambda report: _how_telling(report, waiting))
        super().__init__(f"{task}: {self.cause}")

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; ``awaited`` only where ranks wait in a collective that others never joined."""
        return {
            "task": self.task,
            "cause": self.cause,
            "seconds": self.seconds,
            **({} if self.awaited is None else {"awaited": self.awaited.to_dict()}),
            "ranks": [report.to_dict() for report in self.reports],
        }

    @property
    def cause(self) -> str:
        """The most telling report, in one line; of a rank that waits for another, what it waits in."""
        first = self.reports[0]
        # One that shows no stack is stopped, and that is more telling.
        if self.awaited is not None and first.rank in self.awaited.waiting and first.trace:
            return str(self.awaited)
        where = "before step 0" if first.step < 0 else f"after step {first.step}"
        doing = f" in {first.activity}" if first.activity else ""
        return f"{first.name} {first.what} {where}{doing}"
