"""What a launched process says of itself with each heartbeat, in JSON values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verify.ranks.failure.answer import Answer, AnswerKind
from verify.ranks.failure.calls import NO_CALLS, Calls
from verify.ranks.failure.report import RankReport, report_of
from verify.ranks.failure.status import RankStatus


def said_of(status: RankStatus) -> dict[str, Any]:
    """What a process says of where it is: :func:`status_of` reads it."""
    return {
        "step": status.step,
        "marks": status.marks,
        "task": status.task,
        "activity": status.activity,
        "calls": status.calls.said(),
    }


def status_of(said: Mapping[str, Any]) -> RankStatus:
    """Where a process was when it said so."""
    calls = Calls.heard(said["calls"]) if "calls" in said else NO_CALLS
    return RankStatus(said.get("step", -1), said.get("marks", 0), said.get("task", ""), said.get("activity", ""), calls)


def in_task(said: Mapping[str, Any], task: str) -> dict[str, Any]:
    """What a process said, with its step and calls only if it had begun ``task``."""
    return {**said} if said.get("task") == task else {**said, "step": -1, "activity": "", "calls": NO_CALLS.said()}


def answer_of(said: Mapping[str, Any]) -> Answer | None:
    """Why a process cannot go on; None if it can."""
    if not said.get("answer"):
        return None
    kind, value, trace = said["answer"]
    return Answer(AnswerKind(kind), value, trace)


def report_on(
    rank: int,
    said: Mapping[str, Any],
    where: str,
    stacks: str,
    silence: float | None,
    others_failed: bool,
    replica: int = 0,
    moving: bool = False,
) -> RankReport:
    """One process's report.

    Args:
        rank: its global rank.
        said: its last heartbeat; empty if there was none.
        where: its replica and host.
        stacks: of its threads; empty if it did not show them.
        silence: seconds since its last heartbeat, where they are too many.
        others_failed: whether a peer has died or raised, so that this one only waits.
        replica: which one it belongs to.
        moving: whether it still went on a moment ago, so that its peers' heartbeats are of another time.
    """
    status, answer, ended = status_of(said), answer_of(said), ""
    if silence is not None:
        # What it did after its last heartbeat nobody knows.
        ended = f"has said nothing for {silence:.0f} s (dead, stopped or cut off), last heard"
        if not said:
            ended = "never reported (not started, or cut off)"
    elif said.get("terminated") and answer is None and not others_failed:
        ended = "was told to end by its launcher (SIGTERM)"
    return report_of(
        rank,
        status,
        answer,
        others_failed=others_failed,
        ended=ended,
        stacks=stacks,
        calls=None if moving or silence is not None or "calls" not in said else status.calls,
        output=said.get("output", ""),
        where=where,
        replica=replica,
    )
