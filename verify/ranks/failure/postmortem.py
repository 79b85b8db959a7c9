"""From what launched processes last said of themselves to a report of each. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verify.ranks.failure.calls import NO_CALLS, Calls
from verify.ranks.failure.diagnosis import Answer
from verify.ranks.failure.failure import RankReport
from verify.ranks.failure.status import RankStatus


def place_of(said: Mapping[str, Any]) -> RankStatus:
    """Where a process was when it said so."""
    calls = Calls.heard(said["calls"]) if "calls" in said else NO_CALLS
    return RankStatus(said.get("step", -1), said.get("marks", 0), said.get("task", ""), said.get("activity", ""), calls)


def said_of(place: RankStatus) -> dict[str, Any]:
    """What a process says of where it is, in JSON values: :func:`place_of` reads it."""
    return {
        "step": place.step,
        "marks": place.marks,
        "task": place.task,
        "activity": place.activity,
        "calls": place.calls.said(),
    }


def in_task(said: Mapping[str, Any], task: str) -> dict[str, Any]:
    """What a process said, with its step and calls only if it had begun ``task``."""
    return {**said} if said.get("task") == task else {**said, "step": -1, "activity": "", "calls": NO_CALLS.said()}


def answer_of(said: Mapping[str, Any]) -> Answer | None:
    """Why a process cannot go on; None if it can."""
    return Answer(*said["answer"]) if said.get("answer") else None


def report_of(
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
        said: its last word; empty if there was none.
        where: its replica and host.
        stacks: of its threads; empty if it did not show them.
        silence: seconds since its last word, where they are too many.
        others_failed: whether a peer has died or raised, so that this one only waits.
        replica: which one it belongs to.
        moving: whether it still went on a moment ago, so that its peers' words are of another time.
    """
    place, answer = place_of(said), answer_of(said)
    state, what, trace = "hung", "did not finish in time", stacks
    if others_failed:
        state, what = "waiting", "was still waiting"
    elif said.get("terminated"):
        state, what = "died", "was told to end by its launcher (SIGTERM)"
    if silence is not None:
        state = "died"
        # What it did after its last word nobody knows.
        what = f"has said nothing for {silence:.0f} s (dead, stopped or cut off), last heard"
        if not said:
            what = "never reported (not started, or cut off)"
    elif answer is not None:
        state, what, trace = "raised", f"raised {answer.value}", answer.trace
    calls = None if moving or silence is not None or "calls" not in said else place.calls
    output = said.get("output", "")
    return RankReport(rank, state, what, place.step, place.activity, trace, output, where, calls, replica)
