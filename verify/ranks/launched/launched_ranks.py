"""The processes that a launcher has started, as ranks of one or several replicas.

Each process has two threads of note. One is the rank: it joins the groups, runs loops, and may be stuck in a collective
for as long as it likes. The main thread never waits for more than a moment: on global rank 0 it is the controller,
elsewhere it follows the controller's orders; it notices what failed, and ends the process whatever the rank does.
"""

from __future__ import annotations

import contextlib
import queue
import signal
import socket
import threading
import time
import traceback
from dataclasses import replace
from typing import Any

from verify.ranks.failure.answer import Answer, refusal
from verify.ranks.failure.failure import RankFailure
from verify.ranks.failure.report import RankReport, RankState
from verify.ranks.failure.status import StatusPage, StatusWriter
from verify.ranks.launched.heartbeat import SILENCE, SILENCE_IN_DOUBT, START, Heartbeat, stacks
from verify.ranks.launched.heartbeat_message import answer_of, in_task, report_on, said_of, status_of
from verify.ranks.launched.joining import Joined, join_groups
from verify.ranks.launched.launch import Launch
from verify.ranks.launched.replica import Replica, described, replicas_of
from verify.ranks.local.anonymous import AnonymousFile
from verify.ranks.rank import run_task, seed
from verify.ranks.task_runner import TaskCall, TaskRunner

_TICK = 0.1
# How long ranks may go on after one of them has failed, as in a pool.
_GRACE = 2.0
_SHOW_WAIT = 4.0
_END_WAIT, _LATE_WAIT = 10.0, 40.0
# Torchrun kills for good 30 s after SIGTERM; whom the controller has forgotten ends before that.
_TERM_WAIT = 20.0
_OUTPUT_TAIL = 4000


class LaunchedRanks(TaskRunner):
    """All processes of a launch. :meth:`run` on global rank 0, :meth:`follow` on the others."""

    def __init__(self, launch: Launch, output: AnonymousFile) -> None:
        """Reaches the store in which all meet.

        Args:
            launch: what the launcher says.
            output: what this process prints, for reports.

        Raises:
            Unjudged: the store cannot be reached.
        """
        self.launch = launch
        self._output = output
        self._page = StatusPage(AnonymousFile("verify-status", bytes(StatusPage.size(1))).descriptor, 1)
        self._status = StatusWriter(self._page, 0)
        self._status.begin("starting")
        self._answer: Answer | None = None
        self._failure: BaseException | None = None
        self._terminated = 0.0
        self._ended = False
        self._orders: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[list[Any]] = queue.SimpleQueue()
        self._ranks = 1
        self._joined: Joined | None = None
        self.heartbeat = Heartbeat(launch, self._say)
        self.heartbeat.start()
        if threading.current_thread() is threading.main_thread():
            # Launchers end the peers of a process that has failed; that is a finding, and not to be cut short.
            signal.signal(signal.SIGTERM, self._on_term)

    @property
    def groups(self) -> tuple[Replica, ...]:
        """Each replica, as a pool of its own."""
        return replicas_of(self, self.launch.world_size, self._ranks)

    @property
    def backend(self) -> str:
        """Over what loops send: gloo or nccl; empty until the groups are made."""
        return "" if self._joined is None else self._joined.rank.backend

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the results must know."""
        return () if self._joined is None else self._joined.notes

    @property
    def terminated(self) -> bool:
        """Whether the launcher has asked this process to end."""
        return bool(self._terminated)

    def described(self) -> list[dict[str, Any]]:
        """Each replica's global ranks and their hosts, JSON values only."""
        return described([self._said(r).get("host", "unknown") for r in range(self.launch.world_size)], self._ranks)

    def where(self, rank: int) -> str:
        """``rank 0 of replica 1, on node-b`` for a global rank."""
        replica, own = divmod(rank, self._ranks)
        host = self._said(rank).get("host")
        return f"rank {own} of replica {replica}" + (f", on {host}" if host else "")

    def answer(self, answer: Answer) -> None:
        """This process cannot go on, for the reason in ``answer``."""
        self._answer = answer
        self.heartbeat.speak_soon()

    # The rank's own thread.

    def start(self, ranks: int, device: str, backend: str | None, *, one_world: bool) -> None:
        """Starts the rank, which joins its groups, as in :func:`join_groups`, and runs what global rank 0 hands out.

        Raises:
            BadInput: the processes do not make whole replicas of ``ranks``.
        """
        self.launch.coordinates(ranks)
        self._ranks = ranks

        def work() -> None:
            try:
                store = self.heartbeat.store("groups")
                self._joined = join_groups(
                    self.launch, store, self._status, ranks, device, backend, one_world=one_world
                )
                while self._serve(self._joined):
                    pass
            except BaseException as error:
                self.answer(replace(Answer.of_error(error), trace=traceback.format_exc()))

        threading.Thread(target=work, name="verify-rank", daemon=True).start()

    def _serve(self, joined: Joined) -> bool:
        """One task: handed out, run, collected. False once this process cannot go on."""
        rank, transfer, status = joined.rank, joined.transfer, joined.rank.status
        name, task, arguments, each = transfer.to_all(self._orders.get() if self.launch.rank == 0 else None)
        status.begin(name)
        seed(rank.rank)
        answer = run_task(task, rank, (*arguments, *(each[self.launch.rank] if each else ())))
        if not answer.is_good:
            self.answer(answer)
            return False
        value = answer.value
        if self.launch.rank:
            status.activity("sending its result")
            transfer.to_first(value)
        else:
            results = [transfer.as_sent(value)]
            for other in range(1, self.launch.world_size):
                status.activity(f"collecting the result of global rank {other}")
                results.append(transfer.from_one(other))
            self._results.put(results)
        status.activity("")
        return True

    # The heartbeat's thread.

    def _say(self) -> dict[str, Any]:
        answer = self._answer
        said: dict[str, Any] = said_of(self._page.read()[0]) | {
            "host": socket.gethostname(),
            "terminated": self.terminated,
            "ended": self._ended,
        }
        if answer is not None:
            said["answer"] = [str(answer.kind), str(answer.value), answer.trace]
            said["output"] = self._output.tail(_OUTPUT_TAIL)
        return said

    def _on_term(self, number: int, frame: Any) -> None:
        del number, frame
        self._terminated = self._terminated or time.monotonic()
        self.heartbeat.speak_soon()

    def _said(self, rank: int) -> dict[str, Any]:
        return self._say() if rank == self.launch.rank else self.heartbeat.heard[rank].said

    # The main thread of global rank 0.

    def wait_for_groups(self) -> None:
        """Returns once the groups are made, or cannot be: that is not the loops' time, and :meth:`run` says why."""
        deadline = time.monotonic() + START
        while self._joined is None and time.monotonic() < deadline:
            if self._is_failing() or self.heartbeat.lost():
                return
            time.sleep(_TICK)

    def run_call(self, call: TaskCall) -> list[Any]:
        """Runs a task in every process; ``each`` and the results are in the order of global ranks."""
        if self._failure is not None:
            raise self._failure  # What was left undone would be taken for the result of the next task.
        began = time.monotonic()
        deadline, name, watch = began + call.timeout, call.name, call.watch
        self._orders.put((name, call.task, call.arguments, call.each))
        failed, everybody = 0.0, range(self.launch.world_size)
        while time.monotonic() < deadline:
            with contextlib.suppress(queue.Empty):
                return self._results.get(timeout=_TICK)
            if watch is not None:
                watch([status_of(in_task(self._said(rank), name)) for rank in everybody])
            if lost := self.heartbeat.lost():
                self._failure = RankFailure(name, [self._own_report(lost)], time.monotonic() - began)
                raise self._failure
            failed = failed or (time.monotonic() if self._is_failing() else 0.0)
            if failed and time.monotonic() - failed > _GRACE and not self.heartbeat.is_in_doubt():
                break
        self._failure = self._reason(name, began)
        raise self._failure

    def _is_failing(self) -> bool:
        said = [self._said(rank) for rank in range(self.launch.world_size)]
        return bool(self.heartbeat.silent(SILENCE)) or any(s.get("answer") or s.get("terminated") for s in said)

    def _reason(self, name: str, began: float) -> BaseException:
        """What ended the task, from what everybody said last."""
        everybody = range(self.launch.world_size)
        silent = self.heartbeat.silent(SILENCE_IN_DOUBT)
        answers = {rank: answer for rank in everybody if (answer := answer_of(self._said(rank))) and rank not in silent}
        if (refused := refusal(answers)) is not None:
            rank, error = refused
            # What global rank 0 finds too says nothing about another host.
            return error if not rank else type(error)(f"rank {rank} ({self.where(rank)}): {error}")
        if self._terminated and not answers and not silent:
            return KeyboardInterrupt()  # The launcher ends all, and nobody had failed: no verdict, as on one machine.
        marks = [self._said(rank).get("marks") for rank in everybody]
        asked = [rank for rank in everybody if rank not in silent and rank not in answers]
        shown = self.heartbeat.ask_for_stacks(asked, _SHOW_WAIT)
        reports = [
            report_on(
                rank,
                in_task(self._said(rank), name) if self._said(rank) else {},
                self.where(rank),
                shown.get(rank, ""),
                self.heartbeat.heard[rank].age if rank in silent else None,
                others_failed=bool(answers or silent),
                replica=rank // self._ranks,
                moving=self._said(rank).get("marks") != marks[rank],
            )
            for rank in everybody
        ]
        return RankFailure(name, reports, time.monotonic() - began)

    def _own_report(self, why: str) -> RankReport:
        own, status, answer = self.launch.rank, self._page.read()[0], self._answer
        what, trace = f"is cut off: {why}", stacks()
        if answer is not None:
            what, trace = f"{what}; before that it {answer.kind} {answer.value}", answer.trace or trace
        return RankReport(own, RankState.HUNG, what, status.step, status.activity, trace, where=self.where(own))

    def end(self, status: int) -> None:
        """Global rank 0: lets the others end with ``status``, and waits a while for them to say that they do."""
        self.heartbeat.give({"end": status})
        began = time.monotonic()
        while not self.heartbeat.lost():
            others = self.heartbeat.heard.values()
            left = [h for h in others if not h.said.get("ended") and not h.is_silent(SILENCE_IN_DOUBT)]
            # Whoever is still importing finds nobody to ask if the store ends with this process.
            wait = _LATE_WAIT if any(not heard.said for heard in left) else _END_WAIT
            if not left or time.monotonic() - began > wait:
                return
            time.sleep(_TICK / 2)

    # The main thread of every other process.

    def follow(self, timeout: float) -> tuple[int | None, str]:
        """Waits for the end: its exit status; or None, and why this process ends without an order, with its stacks.

        Args:
            timeout: seconds after which global rank 0 should long have ended the command.
        """
        deadline = time.monotonic() + timeout
        while True:
            if "end" in self.heartbeat.order:
                self._ended = True
                self.heartbeat.say_last()
                return int(self.heartbeat.order["end"]), ""
            why = self.heartbeat.lost()
            if not why and time.monotonic() > deadline:
                why = f"global rank 0 gave no order within {timeout:.0f} s"
            if not why and self._terminated and time.monotonic() - self._terminated > _TERM_WAIT:
                why = "the launcher ends this process, and global rank 0 gave no order"
            if why:
                report = self._own_report(why)
                return None, f"{RankFailure(status_of(self._say()).task, [report], 0.0).cause}\n{report.trace}"
            time.sleep(_TICK)
