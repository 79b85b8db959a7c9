"""What is raised when ranks do not finish a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from verify.errors import Unjudged
from verify.ranks.failure.awaited import awaited, in_collective
from verify.ranks.failure.report import RankReport, RankState

_MOST_TELLING_FIRST = tuple(RankState)


def _how_telling(report: RankReport, waiting: Sequence[int]) -> tuple[int, bool, bool, int, int]:
    """Among hung ranks, one that shows no stack (it is stopped) keeps the others waiting; so does one that waits in no
    collective; then comes the one that is furthest behind.
    """
    told, waits = bool(report.trace), report.rank in waiting or in_collective(report)
    return _MOST_TELLING_FIRST.index(report.state), told, waits, report.step, report.rank


class RankFailure(Unjudged):
    """Some rank did not finish its task."""

    def __init__(
        self, task: str, reports: list[RankReport], seconds: float, results: Mapping[int, Any] | None = None
    ) -> None:
        """``results``: what the ranks that did finish brought back, by rank.

        They are let go where a rank died or raised: what its peers did after that is no longer what their loop does.
        """
        broken = any(report.state in (RankState.DIED, RankState.RAISED) for report in reports)
        self.results = {} if broken else dict(results or {})
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
