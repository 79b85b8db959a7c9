"""What is reported when ranks do not finish a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from verify.errors import Unjudged
from verify.schedule import ALL_GATHER, BROADCAST


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
    """

    rank: int
    state: str
    what: str
    step: int = -1
    activity: str = ""
    trace: str = ""
    output: str = ""
    where: str = ""

    @property
    def name(self) -> str:
        """``rank 1``, and where that is."""
        return f"rank {self.rank}" + (f" ({self.where})" if self.where else "")

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {key: value for key, value in asdict(self).items() if key != "where" or value}


@dataclass(frozen=True)
class Awaited:
    """A collective in which some ranks wait for others that never joined it.

    Attributes:
        collective: which, as the ranks call it: ``all_gather 1 of step 40``.
        waiting: the ranks that wait in it.
        missing: the ranks that do not.
    """

    collective: str
    waiting: tuple[int, ...]
    missing: tuple[int, ...]

    def __str__(self) -> str:
        verb = "waits" if len(self.waiting) == 1 else "wait"
        return f"{_ranks(self.waiting)} {verb} in {self.collective}, which {_ranks(self.missing)} never joined"


def awaited(reports: Sequence[RankReport]) -> Awaited | None:
    """The collective that ranks wait in for a peer; where they wait in several, the one that comes first.

    None if nobody waits, or all do in the same: then a slow network or device is as likely as a peer that is missing.
    """
    waiting: dict[str, list[RankReport]] = {}
    for report in reports:
        if report.state in ("hung", "waiting") and _in_collective(report):
            waiting.setdefault(report.activity, []).append(report)
    if not waiting:
        return None
    collective, there = min(waiting.items(), key=lambda item: item[1][0].step)
    ranks = tuple(sorted(report.rank for report in there))
    missing = tuple(sorted({report.rank for report in reports} - set(ranks)))
    return Awaited(collective, ranks, missing) if missing else None


def _in_collective(report: RankReport) -> bool:
    return report.activity.startswith((ALL_GATHER, BROADCAST))


def _ranks(ranks: Sequence[int]) -> str:
    *others, last = map(str, ranks)
    return f"ranks {', '.join(others)} and {last}" if others else f"rank {last}"


_MOST_TELLING_FIRST = ("died", "raised", "hung", "waiting", "finished")


def _how_telling(report: RankReport) -> tuple[int, bool, bool, int, int]:
    """Among hung ranks, one that shows no stack (it is stopped) keeps the others waiting; so does one outside any
    collective; then comes the one that is furthest behind.
    """
    told = bool(report.trace)
    return _MOST_TELLING_FIRST.index(report.state), told, _in_collective(report), report.step, report.rank


class RankFailure(Unjudged):
    """Some rank did not finish its task."""

    def __init__(
        self, task: str, reports: list[RankReport], seconds: float, results: Mapping[int, Any] | None = None
    ) -> None:
        """``results``: what the ranks that did finish brought back, by rank."""
        self.results = dict(results or {})
        self.task = task
        self.seconds = seconds
        self.reports = sorted(reports, key=_how_telling)
        super().__init__(f"{task}: {self.cause}")

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; ``awaited`` only where ranks wait in a collective that others never joined."""
        waits = awaited(self.reports)
        return {
            "task": self.task,
            "cause": self.cause,
            "seconds": self.seconds,
            **({} if waits is None else {"awaited": asdict(waits) | {"said": str(waits)}}),
            "ranks": [report.to_dict() for report in self.reports],
        }

    @property
    def cause(self) -> str:
        """The most telling report, in one line."""
        first = self.reports[0]
        where = "before step 0" if first.step < 0 else f"after step {first.step}"
        doing = f" in {first.activity}" if first.activity else ""
        return f"{first.name} {first.what} {where}{doing}"
