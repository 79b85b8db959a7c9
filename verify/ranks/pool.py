"""A pool of persistent ranks: started once, reused by every run and test, replaced when one fails."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from verify.errors import BadInput
from verify.ranks import wire
from verify.ranks.board import Board, Place
from verify.ranks.failure import RankFailure, RankReport
from verify.ranks.family import Family, family
from verify.ranks.lease import lease

# How long ranks may go on after one of them has failed: enough to hand in results, not to wait for the dead.
_GRACE = 2.0
_TICK = 0.1
_STACK_WAIT = 1.0
_OUTPUT_TAIL = 4000


@dataclass(frozen=True)
class PoolSpec:
    """How a pool's ranks are set up.

    Attributes:
        devices: one a rank: ``cpu``, ``cuda:0``.
        backend: gloo or nccl.
        threads: CPU threads a rank.
        variables: environment variables set in every rank before it joins its group.
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


Watcher = Callable[[list[Place]], None]


class RankPool:
    """Persistent rank processes. Use it as a context manager, or let the controller's end end it."""

    _numbers = itertools.count()

    def __init__(self, spec: PoolSpec, lease_timeout: float = 600.0) -> None:
        self.spec = spec
        self._lease_timeout = lease_timeout
        self._family: Family | None = None
        self._pids: list[int] = []
        self._connections: list[Connection] = []
        self._folder = Path()

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
        """
        if self._pids:
            return
        self._family = family()
        self._folder = self._family.scratch / f"pool-{next(self._numbers)}"
        self._folder.mkdir()
        self._board = Board(self._folder / "board", self.spec.world_size)
        order = {
            "folder": str(self._folder),
            "devices": self.spec.devices,
            "backend": self.spec.backend,
            "threads": self.spec.threads,
            "variables": dict(self.spec.variables),
            "controller": os.getpid(),
            "path": [os.path.abspath(entry) for entry in sys.path],
        }
        self._pids, self._connections = self._family.fork(order, self.spec.world_size)
        self._collect("starting", time.monotonic() + timeout, None)

    def run(
        self,
        task: Callable[..., Any],
        *arguments: Any,
        each: Sequence[tuple[Any, ...]] | None = None,
        name: str = "",
        timeout: float = 300.0,
        watch: Watcher | None = None,
    ) -> list[Any]:
        """Runs ``task(rank, *arguments)`` on every rank and returns the results in rank order.

        Args:
            task: an importable function; its first argument is a :class:`verify.ranks.worker.Rank`.
            arguments: the same for every rank; tensors arrive on the CPU.
            each: further arguments of each rank, in rank order.
            name: what the task is called in reports.
            timeout: seconds for all ranks together, from now.
            watch: called about ten times a second with where each rank is.

        Raises:
            BadInput: a rank refused what it was given.
            RankFailure: a rank died, raised or hung. The pool is then replaced by the next call.
        """
        name = name or getattr(task, "__qualname__", "task")
        with lease(self.spec.gpus, self._lease_timeout):
            self.start()
            deadline = time.monotonic() + timeout
            for rank, connection in enumerate(self._connections):
                own = (*arguments, *(each[rank] if each else ()))
                try:
                    wire.send(connection, (name, task, own), self._pids[rank])
                except (BrokenPipeError, ConnectionResetError):
                    break  # It has died since the last task; collecting says how.
            return self._collect(name, deadline, watch)

    def stop(self) -> None:
        """Ends the ranks, if any, and removes their files. The next :meth:`run` starts new ones."""
        if self._pids and self._family is not None:
            self._family.signal(self._pids, signal.SIGKILL)
            for pid in self._pids:
                self._family.exit_status(pid, wait=5.0)
        for connection in self._connections:
            connection.close()
        self._pids, self._connections = [], []
        if self._folder != Path():
            shutil.rmtree(self._folder, ignore_errors=True)

    def _collect(self, name: str, deadline: float, watch: Watcher | None) -> list[Any]:
        began = time.monotonic()
        replies: dict[int, tuple[str, Any]] = {}
        pending = {connection: rank for rank, connection in enumerate(self._connections)}
        try:
            while pending and time.monotonic() < deadline:
                for connection in wait(list(pending), min(_TICK, max(0.0, deadline - time.monotonic()))):
                    assert isinstance(connection, Connection)
                    reply = _receive(connection)
                    replies[pending.pop(connection)] = reply
                    if reply[0] not in ("done", "ready"):
                        deadline = min(deadline, time.monotonic() + _GRACE)
                if watch is not None:
                    watch(self._board.read())
            kinds = {kind for kind, _ in replies.values()}
            if not pending and kinds <= {"done", "ready"}:
                return [replies[rank][1] for rank in range(self.spec.world_size)]
            for rank in range(self.spec.world_size):
                if replies.get(rank, ("",))[0] == "bad input":
                    raise BadInput(replies[rank][1])
            reports = self._reports(replies)
            raise RankFailure(name, reports, time.monotonic() - began)
        except BaseException:
            self.stop()
            raise

    def _reports(self, replies: dict[int, tuple[str, Any]]) -> list[RankReport]:
        """One report a rank, stacks of the living included."""
        places = self._board.read()
        stacks = self._stacks([rank for rank in range(self.spec.world_size) if rank not in replies])
        a_peer_failed = any(kind in ("died", "raised") for kind, _ in replies.values())
        reports = []
        for rank, place in enumerate(places):
            kind, value = replies.get(rank, ("waiting" if a_peer_failed else "hung", None))
            trace, what = stacks.get(rank, ""), "finished its part"
            if kind == "died":
                what, trace = self._how_it_died(rank), self._read(f"stack.{rank}")
            elif kind == "raised":
                what, trace = f"raised {value.strip().splitlines()[-1]}", value
            elif kind in ("waiting", "hung"):
                what = "was still waiting" if kind == "waiting" else "did not finish in time"
                if not trace:
                    what += " and did not answer a signal: it is stopped, or stuck in a system call"
            state = "finished" if kind in ("done", "ready") else kind
            output = self._read(f"output.{rank}")[-_OUTPUT_TAIL:]
            reports.append(RankReport(rank, state, what, place.step, place.activity, trace, output))
        return reports

    def _how_it_died(self, rank: int) -> str:
        assert self._family is not None
        status = self._family.exit_status(self._pids[rank], wait=2.0)
        if status is None:
            return "closed its connection without exiting"
        if status < 0:
            hint = ": out of memory, or somebody killed it" if -status == signal.SIGKILL else ""
            return f"was killed by {signal.Signals(-status).name}{hint}"
        return f"exited with status {status}"

    def _stacks(self, ranks: list[int]) -> dict[int, str]:
        """Asks living ranks for the stack of each thread."""
        if not ranks or self._family is None:
            return {}
        self._family.signal([self._pids[rank] for rank in ranks], signal.SIGUSR1)
        deadline = time.monotonic() + _STACK_WAIT
        stacks: dict[int, str] = {}
        while time.monotonic() < deadline and any(not stacks.get(rank) for rank in ranks):
            time.sleep(0.05)
            stacks = {rank: self._read(f"stack.{rank}") for rank in ranks}
        return stacks

    def output(self, rank: int) -> str:
        """What rank ``rank`` has printed since the pool started."""
        return self._read(f"output.{rank}")

    def _read(self, name: str) -> str:
        try:
            return (self._folder / name).read_text(errors="replace")
        except OSError:
            return ""


def _receive(connection: Connection) -> tuple[str, Any]:
    try:
        kind, value = wire.receive(connection)
        return kind, value
    except (EOFError, OSError, RuntimeError):  # RuntimeError: it ended between a message and its memory.
        return "died", None
