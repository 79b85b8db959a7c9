"""From what ranks answered, or did not, to a report a rank.

PyTorch's flight recorder is not used. It exists for NCCL only, writes pickles to named files from a watchdog thread
after a time limit of its own, and what it holds of the host (each rank's collectives and their order) stands on the
board already. Over NCCL a host runs ahead of its device, so that where it stands says nothing of what its device waits
for; how many collectives each host has called does (:mod:`verify.ranks.failure.calls`). What the recorder would add is
how far a device is where all have called the same number.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verify.ranks.failure.failure import RankReport
from verify.ranks.failure.processes import state_and_parent
from verify.ranks.failure.status import RankStatus
from verify.ranks.local.forkserver import ForkServer, RankFiles

_STACK_WAIT = 3.0
_EXIT_WAIT = 2.0
_STANDS_STILL = 0.5
_OUTPUT_TAIL = 4000
_STACK_TAIL = 1 << 16
_CLOSED = "closed its connection without exiting"

# Kinds of answers. A rank sends the first five; the last two are how the controller notes that nothing whole came.
READY, DONE, BAD_INPUT, UNJUDGED, RAISED = "ready", "done", "bad input", "unjudged", "raised"
DIED, STUCK = "died", "stuck"
GOOD = frozenset({READY, DONE})


@dataclass(frozen=True)
class Answer:
    """What came from a rank.

    Attributes:
        kind: one of the constants above.
        value: the result; or, in words, why there is none.
        trace: the traceback of what it raised.
    """

    kind: str
    value: Any = None
    trace: str = ""


def diagnose(
    server: ForkServer,
    pids: Sequence[int],
    files: Sequence[RankFiles],
    read: Callable[[], Sequence[RankStatus]],
    answers: Mapping[int, Answer],
) -> list[RankReport]:
    """One report a rank, in rank order, with the stacks of the living. ``read`` tells where each rank is."""
    places = read()
    moving = _moving(read, places)
    silent = [rank for rank in range(len(pids)) if rank not in answers or answers[rank].kind == STUCK]
    ended = {rank: _how_it_died(server, pids[rank]) for rank, answer in answers.items() if answer.kind == DIED}
    still_there = [rank for rank, how in ended.items() if how == _CLOSED]
    stacks = _ask_for_stacks(server, pids, files, silent + still_there)
    waiting = any(answer.kind in (DIED, RAISED) for answer in answers.values())
    reports = []
    for rank, place in enumerate(places):
        answer = answers.get(rank, Answer("waiting" if waiting else "hung"))
        state, what, trace = answer.kind, "finished its part", stacks.get(rank, "")
        if state == DIED:
            what, trace = ended[rank], files[rank].stacks.tail(_STACK_TAIL)
        elif state == RAISED:
            what, trace = f"raised {answer.value}", answer.trace
        elif state == STUCK:
            state, what = "hung", "stood still in the middle of a message"
        elif state in ("waiting", "hung"):
            what = "was still waiting" if state == "waiting" else "did not finish in time"
        elif state in GOOD:
            state = "finished"
        if rank in silent and not trace:
            # That is the cause of a peer's trouble, never the effect of it.
            state, what = "hung", f"{what} and {_why_silent(pids[rank])}"
        output = files[rank].output.tail(_OUTPUT_TAIL)
        calls = None if rank in moving else place.calls
        reports.append(RankReport(rank, state, what, place.step, place.activity, trace, output, calls=calls))
    return reports


def _moving(read: Callable[[], Sequence[RankStatus]], places: Sequence[RankStatus]) -> set[int]:
    """The ranks that go on, so that counts of collectives are of different times. Where counts differ they are given a
    moment for it, since ranks that are only slow differ too; and before they are asked for stacks, since the signal for
    that can end what a rank is stuck in.
    """
    if len({place.calls.count for place in places}) > 1:
        time.sleep(_STANDS_STILL)
    return {rank for rank, (then, now) in enumerate(zip(places, read(), strict=True)) if then.marks != now.marks}


def _ask_for_stacks(
    server: ForkServer, pids: Sequence[int], files: Sequence[RankFiles], ranks: Sequence[int]
) -> dict[int, str]:
    """The stack of each thread of each of ``ranks``; empty for one that does not answer."""
    if not ranks:
        return {}
    server.signal([pids[rank] for rank in ranks], signal.SIGUSR1)
    deadline = time.monotonic() + _STACK_WAIT
    sizes: list[int] = []
    while time.monotonic() < deadline:
        time.sleep(0.02)
        before, sizes = sizes, [files[rank].stacks.size for rank in ranks]
        answered = (
            size or state_and_parent(pids[rank])[0] in _CANNOT_ANSWER for rank, size in zip(ranks, sizes, strict=True)
        )
        if sizes == before and all(answered):
            break
    return {rank: files[rank].stacks.tail(_STACK_TAIL) for rank in ranks}


def _how_it_died(server: ForkServer, pid: int) -> str:
    status = server.exit_status(pid, wait=_EXIT_WAIT)
    if not server.alive:
        return "was killed together with the process that ranks are forked from"
    if status is None:
        return _CLOSED
    if status < 0:
        hint = ": out of memory, or somebody killed it" if -status == signal.SIGKILL else ""
        return f"was killed by {_signal_name(-status)}{hint}"
    return f"exited with status {status}"


def _signal_name(number: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"


_CANNOT_ANSWER = {
    "T": "is stopped (SIGSTOP)",
    "t": "is stopped by a debugger",
    "Z": "has just died",
    "": "has just died",
}


def _why_silent(pid: int) -> str:
    """Why a process does not answer a signal, as far as the kernel says."""
    state, _ = state_and_parent(pid)
    if state == "D":
        return "is in a system call that no signal interrupts"
    return _CANNOT_ANSWER.get(state, "did not answer a signal")
