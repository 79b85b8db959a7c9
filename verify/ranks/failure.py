"""What is reported when ranks do not finish a task."""

from __future__ import annotations

from collections.abc import Mapping
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
    """

    rank: int
    state: str
    what: str
    step: int = -1
    activity: str = ""
    trace: str = ""
    output: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return asdict(self)


_MOST_TELLING_FIRST = ("died", "raised", "hung", "waiting", "finished")


def _how_telling(report: RankReport) -> tuple[int, bool, bool, int, int]:
    """Among hung ranks, one that shows no stack (it is stopped) keeps the others waiting; so does one outside any
    collective; then comes the one that is furthest behind.
    """
    in_collective = report.activity.startswith((ALL_GATHER, BROADCAST))
    return _MOST_TELLING_FIRST.index(report.state), bool(report.trace), in_collective, report.step, report.rank


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

    @property
    def cause(self) -> str:
        """The most telling report, in one line."""
        first = self.reports[0]
        where = "before step 0" if first.step < 0 else f"after step {first.step}"
        doing = f" in {first.activity}" if first.activity else ""
        return f"rank {first.rank} {first.what} {where}{doing}"
