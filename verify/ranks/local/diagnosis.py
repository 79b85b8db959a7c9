"""From what workers answered, or did not, to a report of each.

PyTorch's flight recorder is not used. It exists for NCCL only, writes pickles to named files from a watchdog thread
after a time limit of its own, and what it holds of the host (each rank's collectives and their order) stands on the
status page already. Over NCCL a host runs ahead of its device, so that where it stands says nothing of what its device
waits for; how many collectives each host has called does (:mod:`verify.ranks.failure.calls`). What the recorder would
add is how far a device is where all have called the same number.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Mapping, Sequence

from verify.ranks.failure.answer import Answer, AnswerKind
from verify.ranks.failure.processes import state_and_parent
from verify.ranks.failure.report import RankReport, report_of
from verify.ranks.failure.status import RankStatus
from verify.ranks.local.forkserver import ForkServer, Worker

_STACK_WAIT = 3.0
_EXIT_WAIT = 2.0
_STANDS_STILL = 0.5
_OUTPUT_TAIL = 4000
_STACK_TAIL = 1 << 16
_CLOSED = "closed its connection without exiting"


def diagnose(
    server: ForkServer,
    workers: Sequence[Worker],
    read: Callable[[], Sequence[RankStatus]],
    answers: Mapping[int, Answer],
    where: Callable[[int], str],
) -> list[RankReport]:
    """One report for each worker, in their order, with the stacks of the living.

    Args:
        server: what the workers were forked from.
        workers: by global rank; those that have no task are not among them.
        read: tells where each rank is.
        answers: what came, by index in ``workers``.
        where: a global rank's coordinates, in words.
    """
    statuses = read()
    moving = _moving(read, statuses)
    silent = [at for at in range(len(workers)) if at not in answers or answers[at].kind is AnswerKind.STUCK]
    ended = {at: _how_it_died(server, workers[at].pid) for at, a in answers.items() if a.kind is AnswerKind.DIED}
    still_there = [at for at, how in ended.items() if how == _CLOSED]
    stacks = _ask_for_stacks(server, workers, silent + still_there)
    others_failed = any(answer.kind in (AnswerKind.DIED, AnswerKind.RAISED) for answer in answers.values())
    return [
        report_of(
            worker.rank,
            statuses[at],
            answers.get(at),
            others_failed=others_failed,
            ended=ended.get(at, ""),
            stacks=worker.stacks.tail(_STACK_TAIL) if at in ended else stacks.get(at, ""),
            why_silent=_why_silent(worker.pid) if at in silent and not stacks[at] else "",
            calls=None if at in moving else statuses[at].calls,
            output=worker.output.tail(_OUTPUT_TAIL),
            where=where(worker.rank),
        )
        for at, worker in enumerate(workers)
    ]


def _moving(read: Callable[[], Sequence[RankStatus]], statuses: Sequence[RankStatus]) -> set[int]:
    """The ranks that go on, so that counts of collectives are of different times. Where counts differ they are given a
    moment for it, since ranks that are only slow differ too; and before they are asked for stacks, since the signal for
    that can end what a rank is stuck in.
    """
    if len({status.calls.count for status in statuses}) > 1:
        time.sleep(_STANDS_STILL)
    return {at for at, (then, now) in enumerate(zip(statuses, read(), strict=True)) if then.marks != now.marks}


def _ask_for_stacks(server: ForkServer, workers: Sequence[Worker], asked: Sequence[int]) -> dict[int, str]:
    """The stack of each thread of each of those ``asked``; empty for one that does not answer."""
    if not asked:
        return {}
    server.signal([workers[at].pid for at in asked], signal.SIGUSR1)
    deadline = time.monotonic() + _STACK_WAIT
    sizes: list[int] = []
    while time.monotonic() < deadline:
        time.sleep(0.02)
        before, sizes = sizes, [workers[at].stacks.size for at in asked]
        answered = (
            size or state_and_parent(workers[at].pid)[0] in _CANNOT_ANSWER
            for at, size in zip(asked, sizes, strict=True)
        )
        if sizes == before and all(answered):
            break
    return {at: workers[at].stacks.tail(_STACK_TAIL) for at in asked}


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
