"""A pool of persistent ranks: started once, reused by every run and test, replaced when one fails."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from verify.errors import BadInput, Unjudged
from verify.ranks.failure.diagnosis import BAD_INPUT, DIED, GOOD, RAISED, STUCK, UNJUDGED, Answer, diagnose
from verify.ranks.failure.failure import RankFailure
from verify.ranks.failure.status import RankStatus, StatusPage
from verify.ranks.local import wire
from verify.ranks.local.anonymous import AnonymousFile
from verify.ranks.local.forkserver import ForkServer, RankFiles, fork_server, import_path, variables
from verify.ranks.local.lease import lease
from verify.ranks.task_runner import TaskCall, TaskRunner, Watcher

# How long ranks may go on after one of them has failed: enough to hand in results, not to wait for the dead.
_GRACE = 2.0
_TICK = 0.1
# Output is kept in memory; of more than this, what was printed first is forgotten.
_MOST_OUTPUT = 16 << 20


@dataclass(frozen=True)
class PoolSpec:
    """How a pool's ranks are set up.

    Attributes:
        devices: one a rank: ``cpu``, ``cuda:0``.
        backend: gloo or nccl.
        threads: CPU threads a rank.
        variables: environment variables set in every rank before it joins its group, beside the controller's.
    """

    devices: tuple[str, ...]
    backend: str = "gloo"
    threads: int = 1
    variables: tuple[tuple[str, str], ...] = ()

    @property
    def world_size(self) -> int:
        """How many ranks."""
        return len(self.devices)

    @property
    def gpus(self) -> list[int]:
        """The GPUs used, each once."""
        return sorted({int(d.removeprefix("cuda:")) for d in self.devices if d.startswith("cuda:")})


class RankPool(TaskRunner):
    """Persistent rank processes. Use it as a context manager, or let the controller's end end it.

    Ranks get the controller's environment variables and import path as they are when the pool starts, and its working
    directory as it is when a task starts. One thread may use a pool at a time.
    """

    def __init__(self, spec: PoolSpec, lease_timeout: float = 600.0) -> None:
        self.spec = spec
        self._lease_timeout = lease_timeout
        self._server: ForkServer | None = None
        self._pids: list[int] = []
        self._inboxes: list[wire.Inbox] = []
        self._births: list[RankFiles] = []
        self._shared: list[AnonymousFile] = []
        self._board: StatusPage | None = None

    def __enter__(self) -> RankPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pids(self) -> list[int]:
        """The ranks' process ids in rank order; empty while the pool is down."""
        return list(self._pids)

    def start(self, timeout: float = 120.0) -> None:
        """Starts the ranks unless they are up.

        Raises:
            RankFailure: a rank did not come up within ``timeout`` seconds.
            Unjudged: the process that ranks are forked from did not come up.
        """
        if self._pids and not self._is_usable():
            self.stop()
        if self._pids:
            return
        self._server = fork_server()
        world_size = self.spec.world_size
        try:
            board = AnonymousFile("verify-board", bytes(StatusPage.size(world_size)))
            self._shared = [board, AnonymousFile("verify-rendezvous")]
            self._board = StatusPage(board.descriptor, world_size)
            for rank in range(world_size):
                names = (f"verify-output-{rank}", f"verify-stacks-{rank}")
                self._births.append(RankFiles(*map(AnonymousFile, names)))
            order = {
                "devices": self.spec.devices,
                "backend": self.spec.backend,
                "threads": self.spec.threads,
                "variables": variables() | dict(self.spec.variables),
                "controller": os.getpid(),
                "path": import_path(),
            }
            self._pids, connections = self._server.fork(order, self._shared, self._births)
            self._inboxes = [wire.Inbox(connection) for connection in connections]
            self._collect("starting", time.monotonic() + timeout, None)
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
            self.start()
            deadline = time.monotonic() + call.timeout
            try:
                return self._collect(call.name, deadline, call.watch, self._hand_out(call))
            except BaseException:
                self.stop()
                raise

    def stop(self) -> None:
        """Ends the ranks, if any. The next :meth:`run` starts new ones."""
        pids, self._pids = self._pids, []
        if pids and self._server is not None and self._server.alive:
            self._server.end_ranks(pids)
        connections = [inbox.connection for inbox in self._inboxes]
        for closable in (*connections, *self._shared, *((self._board,) if self._board else ())):
            closable.close()
        for file in self._births:
            file.output.close()
            file.stacks.close()
        self._inboxes, self._shared, self._births, self._board = [], [], [], None

    def output(self, rank: int) -> str:
        """The end of what rank ``rank`` has printed since the pool started."""
        return self._births[rank].output.tail(_MOST_OUTPUT) if self._births else ""

    def _is_usable(self) -> bool:
        """Whether every rank lives, as far as can be seen. One that died between two tasks has failed neither."""
        return self._server is not None and self._server.alive and not any(i.connection.poll() for i in self._inboxes)

    def _hand_out(self, call: TaskCall) -> dict[int, Answer]:
        """Sends each rank its task; returns the answers of those that did not take it."""
        assert self._board is not None
        folder = _working_directory()
        for rank, inbox in enumerate(self._inboxes):
            self._board.write(rank, RankStatus(task=call.name))
            with wire.pack((call.name, folder, call.task, call.arguments_of(rank))) as packed:
                try:
                    wire.send(inbox.connection, packed, self._pids[rank])
                except BlockingIOError:
                    return {rank: Answer(STUCK)}
                except OSError:
                    return {rank: Answer(DIED)}
        return {}

    def _collect(
        self, name: str, deadline: float, watch: Watcher | None, answers: dict[int, Answer] | None = None
    ) -> list[Any]:
        """Waits for every rank's answer; all of them are drained before anything is raised."""
        assert self._board is not None
        assert self._server is not None
        began = time.monotonic()
        answers = {} if answers is None else answers
        if answers:
            deadline = min(deadline, began + _GRACE)
        pending = {inbox.connection: rank for rank, inbox in enumerate(self._inboxes) if rank not in answers}
        while pending and time.monotonic() < deadline:
            for connection in wait(list(pending), min(_TICK, max(0.0, deadline - time.monotonic()))):
                assert isinstance(connection, Connection)
                rank = pending[connection]
                answer = _receive(self._inboxes[rank])
                if answer is None:
                    continue
                answers[rank] = answer
                del pending[connection]
                if answer.kind not in GOOD:
                    deadline = min(deadline, time.monotonic() + _GRACE)
            for file in self._births:
                if file.output.size > _MOST_OUTPUT:
                    file.output.clear()
            if watch is not None:
                watch(self._board.read())
        if not pending and all(answer.kind in GOOD for answer in answers.values()):
            return [answers[rank].value for rank in range(self.spec.world_size)]
        for _, answer in sorted(answers.items()):
            if answer.kind == BAD_INPUT:
                raise BadInput(answer.value)
            if answer.kind == UNJUDGED:
                raise Unjudged(answer.value)
        reports = diagnose(self._server, self._pids, self._births, self._board.read, answers)
        finished = {rank: answer.value for rank, answer in answers.items() if answer.kind in GOOD}
        raise RankFailure(name, reports, time.monotonic() - began, finished)


def _receive(inbox: wire.Inbox) -> Answer | None:
    """A rank's answer; None if it only announced one."""
    try:
        message = inbox.receive()
        return None if message is wire.COMING else Answer(*message)
    except wire.Unreadable as error:
        text = str(error)
        return Answer(RAISED, f"{text.strip().splitlines()[-1]} (its result could not be read)", text)
    except BlockingIOError:
        return Answer(STUCK)
    except (EOFError, OSError):
        return Answer(DIED)


def _working_directory() -> str:
    """Where this process is; the root folder if that has been removed."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return "/"
