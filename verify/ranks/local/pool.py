"""A pool of persistent workers: started once, reused by every run and test, replaced when one fails."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from verify.ranks.failure.answer import Answer, AnswerKind, refusal
from verify.ranks.failure.failure import RankFailure
from verify.ranks.failure.status import RankStatus, StatusPage
from verify.ranks.local import wire
from verify.ranks.local.anonymous import AnonymousFile
from verify.ranks.local.diagnosis import diagnose
from verify.ranks.local.forkserver import ForkServer, Worker, fork_server, import_path, variables
from verify.ranks.local.lease import lease
from verify.ranks.task_runner import TaskCall, TaskRunner, Watcher

# How long ranks may go on after one of them has failed: enough to hand in results, not to wait for the dead.
_GRACE = 2.0
_TICK = 0.1
# Ranks start in seconds; on a busy machine, or as fresh interpreters, in tens of them.
_LEAST_START, _MOST_START = 30.0, 120.0
# Output is kept in memory; of more than this, what was printed first is forgotten.
_MOST_OUTPUT = 16 << 20


@dataclass(frozen=True)
class PoolSpec:
    """How a pool's ranks are set up.

    Attributes:
        devices: one for each process: ``cpu``, ``cuda:0``.
        backend: gloo or nccl.
        threads: CPU threads of each rank.
        variables: environment variables set in every rank before it joins its group, beside the controller's.
        group: the global ranks that make the CFG group, in the order of its ranks; None for all in their order. The
            processes outside it join the world and are given no task.
        fresh_interpreters: whether each rank is a Python started anew, and not a fork. Each then has a hash seed of its
            own, also where ``PYTHONHASHSEED`` is set.
    """

    devices: tuple[str, ...]
    backend: str = "gloo"
    threads: int = 1
    variables: tuple[tuple[str, str], ...] = ()
    group: tuple[int, ...] | None = None
    fresh_interpreters: bool = False

    @property
    def members(self) -> tuple[int, ...]:
        """The global rank of each rank of the CFG group."""
        return tuple(range(len(self.devices))) if self.group is None else self.group

    @property
    def world_size(self) -> int:
        """How many ranks the CFG group has."""
        return len(self.members)

    @property
    def gpus(self) -> list[int]:
        """The GPUs used, each once."""
        return sorted({int(d.removeprefix("cuda:")) for d in self.devices if d.startswith("cuda:")})


class RankPool(TaskRunner):
    """Persistent workers. Use it as a context manager, or let the controller's end end it.

    Ranks get the controller's environment variables and import path as they are when the pool starts, and its working
    directory as it is when a task starts. One thread may use a pool at a time.
    """

    def __init__(self, spec: PoolSpec, lease_timeout: float = 600.0) -> None:
        self.spec = spec
        self._lease_timeout = lease_timeout
        self._server: ForkServer | None = None
        self._workers: list[Worker] = []
        self._inboxes: list[wire.Inbox] = []
        self._shared: list[AnonymousFile] = []
        self._page: StatusPage | None = None

    def __enter__(self) -> RankPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pids(self) -> list[int]:
        """The processes by global rank; empty while the pool is down."""
        return [worker.pid for worker in self._workers]

    def start(self, timeout: float = _MOST_START) -> None:
        """Starts the ranks unless they are up.

        Raises:
            RankFailure: a rank did not come up within ``timeout`` seconds.
            Unjudged: the process that starts ranks did not come up.
        """
        if self._workers and not self._is_usable():
            self.stop()
        if self._workers:
            return
        self._server = fork_server()
        processes = len(self.spec.devices)
        order = {
            "devices": self.spec.devices,
            "backend": self.spec.backend,
            "threads": self.spec.threads,
            "variables": variables() | dict(self.spec.variables),
            "group": self.spec.members,
            "fresh_interpreters": self.spec.fresh_interpreters,
            "controller": os.getpid(),
            "path": import_path(),
        }
        try:
            page = AnonymousFile("verify-status", bytes(StatusPage.size(processes)))
            self._shared = [page, AnonymousFile("verify-rendezvous")]
            self._page = StatusPage(page.descriptor, processes)
            self._workers = self._server.fork(order, self._shared, processes)
            self._inboxes = [wire.Inbox(worker.connection) for worker in self._workers]
            self._collect("starting", range(processes), time.monotonic() + timeout, None, {})
        except BaseException:
            self.stop()
            raise

    def renew(self) -> bool:
        """Ends the workers: the next task starts fresh ones."""
        self.stop()
        return True

    def run_call(self, call: TaskCall) -> list[Any]:
        """Runs a task on every rank, once GPUs are leased and ranks are up."""
        with lease(self.spec.gpus, self._lease_timeout):
            self.start(max(_LEAST_START, min(_MOST_START, call.timeout)))
            deadline = time.monotonic() + call.timeout
            try:
                answers = self._collect(call.name, self.spec.members, deadline, call.watch, self._hand_out(call))
            except BaseException:
                self.stop()
                raise
            if any(answer.spent for answer in answers):
                self.stop()  # The next task gets fresh ranks.
            return [answer.value for answer in answers]

    def stop(self) -> None:
        """Ends the ranks, if any. The next :meth:`run` starts new ones."""
        workers, self._workers = self._workers, []
        if workers and self._server is not None and self._server.alive:
            self._server.end_ranks([worker.pid for worker in workers])
        for closable in (*workers, *self._shared, *((self._page,) if self._page else ())):
            closable.close()
        self._inboxes, self._shared, self._page = [], [], None

    def output(self, rank: int) -> str:
        """The end of what global rank ``rank`` has printed since the pool started."""
        return self._workers[rank].output.tail(_MOST_OUTPUT) if self._workers else ""

    def where(self, rank: int) -> str:
        """A global rank's coordinates in words; empty where they are its number."""
        if self.spec.group is None:
            return ""
        if rank not in self.spec.group:
            return "outside the CFG group"
        return f"rank {self.spec.group.index(rank)} of the CFG group"

    def _is_usable(self) -> bool:
        """Whether every rank lives, as far as can be seen. One that died between two tasks has failed neither."""
        hung_up = any(inbox.connection.poll() for inbox in self._inboxes)
        return self._server is not None and self._server.alive and not hung_up

    def _hand_out(self, call: TaskCall) -> dict[int, Answer]:
        """Sends each rank its task; returns the answers of those that did not take it."""
        assert self._page is not None
        folder = _working_directory()
        for own, rank in enumerate(self.spec.members):
            self._page.write(rank, RankStatus(task=call.name))
            with wire.pack((call.name, folder, call.task, call.arguments_of(own))) as packed:
                try:
                    wire.send(self._inboxes[rank].connection, packed, self._workers[rank].pid)
                except BlockingIOError:
                    return {rank: Answer(AnswerKind.STUCK)}
                except OSError:
                    return {rank: Answer(AnswerKind.DIED)}
        return {}

    def _collect(
        self,
        name: str,
        ranks: Sequence[int],
        deadline: float,
        watch: Watcher | None,
        answers: dict[int, Answer],
    ) -> list[Answer]:
        """Waits for the answer of each of ``ranks``; all of them are drained before anything is raised."""
        assert self._page is not None
        began = time.monotonic()
        if answers:
            deadline = min(deadline, began + _GRACE)
        pending = {self._workers[rank].connection: rank for rank in ranks if rank not in answers}
        while pending and time.monotonic() < deadline:
            for connection in wait(list(pending), min(_TICK, max(0.0, deadline - time.monotonic()))):
                assert isinstance(connection, Connection)
                rank = pending[connection]
                answer = _receive(self._inboxes[rank])
                if answer is None:
                    continue
                answers[rank] = answer
                del pending[connection]
                if not answer.is_good:
                    deadline = min(deadline, time.monotonic() + _GRACE)
            for worker in self._workers:
                worker.output.forget_all_but(_MOST_OUTPUT)
            if watch is not None:
                watch(self._statuses(ranks))
        if not pending and all(answer.is_good for answer in answers.values()):
            return [answers[rank] for rank in ranks]
        raise self._failure(name, ranks, answers, time.monotonic() - began)

    def _statuses(self, ranks: Sequence[int]) -> list[RankStatus]:
        assert self._page is not None
        read = self._page.read()
        return [read[rank] for rank in ranks]

    def _failure(self, name: str, ranks: Sequence[int], answers: dict[int, Answer], seconds: float) -> Exception:
        """Why a task did not end well on each of ``ranks``."""
        if (refused := refusal(answers)) is not None:
            return refused[1]
        assert self._server is not None
        in_order = {at: answers[rank] for at, rank in enumerate(ranks) if rank in answers}
        workers = [self._workers[rank] for rank in ranks]
        reports = diagnose(self._server, workers, lambda: self._statuses(ranks), in_order, self.where)
        results = {rank: answer.value for rank, answer in answers.items() if answer.is_good}
        return RankFailure(name, reports, seconds, results)


def _receive(inbox: wire.Inbox) -> Answer | None:
    """A rank's answer; None if it only announced one."""
    try:
        message = inbox.receive()
        return None if message is wire.COMING else message
    except wire.Unreadable as error:
        text = str(error)
        return Answer(AnswerKind.RAISED, f"{text.strip().splitlines()[-1]} (its result could not be read)", text)
    except BlockingIOError:
        return Answer(AnswerKind.STUCK)
    except (EOFError, OSError):
        return Answer(AnswerKind.DIED)


def _working_directory() -> str:
    """Where this process is; the root folder if that has been removed."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return "/"
