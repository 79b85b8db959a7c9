"""What became of one rank, told from what is known of it. Pure: nothing here asks a process."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from verify.ranks.failure.answer import Answer, AnswerKind
from verify.ranks.failure.calls import NO_CALLS, Calls
from verify.ranks.failure.status import RankStatus


class RankState(StrEnum):
    """How a rank's task ended, the most telling first. ``WAITING``: for a peer that failed."""

    DIED = "died"
    RAISED = "raised"
    HUNG = "hung"
    WAITING = "waiting"
    FINISHED = "finished"


@dataclass(frozen=True)
class RankReport:
    """What became of one rank.

    Attributes:
        rank: its number.
        state: how its task ended.
        what: one line: the signal or exit status, the exception, or where it stood still.
        step: the last step it finished; -1 before the first.
        activity: what it was doing: a branch evaluation, a collective.
        trace: its traceback, or the stack of each of its threads.
        output: the end of what it printed.
        where: its replica and host, where there are several; empty where there is one.
        calls: the collectives that it called in this task; None if it is not known which, or not up to now.
        replica: which one it belongs to, from 0.
    """

    rank: int
    state: RankState
    what: str
    step: int = -1
    activity: str = ""
    trace: str = ""
    output: str = ""
    where: str = ""
    calls: Calls | None = NO_CALLS
    replica: int = 0

    @property
    def name(self) -> str:
        """``rank 1``, and where that is."""
        return f"rank {self.rank}" + (f" ({self.where})" if self.where else "")

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        told = {key: value for key, value in asdict(self).items() if key not in ("calls", "replica")}
        return told if self.where else {key: value for key, value in told.items() if key != "where"}


def report_of(
    rank: int,
    status: RankStatus,
    answer: Answer | None,
    *,
    others_failed: bool,
    ended: str = "",
    stacks: str = "",
    why_silent: str = "",
    calls: Calls | None = NO_CALLS,
    output: str = "",
    where: str = "",
    replica: int = 0,
) -> RankReport:
    """One rank's report.

    Args:
        rank: its global number.
        status: where it was when last heard.
        answer: what came from it; None if nothing did.
        others_failed: whether a peer has died or raised, so that a rank without an answer only waits for it.
        ended: how its process ended, in words; empty if it lives.
        stacks: of its threads; empty if it did not show them.
        why_silent: why it did not show its stacks though it was asked, in words; empty if it did.
        calls: the collectives that it called; None if it is not known which, or not up to now.
        output: the end of what it printed.
        where: its coordinates where it is one of several groups; empty where there is one.
        replica: which one it belongs to.
    """
    state, what, trace = RankState.HUNG, "did not finish in time", stacks
    if ended:
        state, what = RankState.DIED, ended
    elif answer is None:
        if others_failed:
            state, what = RankState.WAITING, "was still waiting"
    elif answer.kind is AnswerKind.STUCK:
        what = "stood still in the middle of a message"
    elif answer.is_good:
        state, what = RankState.FINISHED, "finished its part"
    else:
        state, what, trace = RankState.RAISED, f"raised {answer.value}", answer.trace
    if why_silent:
        # A rank that answers no signal is the cause of a peer's trouble, never the effect of it.
        state, what = RankState.HUNG, f"{what} and {why_silent}"
    return RankReport(rank, state, what, status.step, status.activity, trace, output, where, calls, replica)
