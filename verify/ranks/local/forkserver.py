"""The controller's end of the fork server: fork ranks, signal them, learn how they ended."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from signal import SIGKILL
from typing import Any

from verify.errors import Unjudged
from verify.ranks.failure.processes import is_stopped
from verify.ranks.local.anonymous import AnonymousFile

_START_TIMEOUT = 120.0
_END_TIMEOUT = 5.0
# A killed rank ends when the driver has taken back its GPU memory.
_RANK_END_TIMEOUT = 30.0
# A rank that stops in the middle of a message must not stop its controller for longer.
_MESSAGE_TIMEOUT = 3

_DEAD = "ranks could not be started: the process that starts them has died or does not answer"

_NOT_STARTED, _FEW = "ranks could not be started: ", "; see ulimit -u and the container's limit of processes"

_PROGRAM = """import sys
sys.path[:] = sys.argv[3:]
from verify.ranks.local.forkserver_process import start
start(int(sys.argv[1]), int(sys.argv[2]))"""


@dataclass(frozen=True)
class Worker:
    """The controller's end of one worker.

    Attributes:
        rank: its global number.
        pid: its process.
        connection: the way to it and back.
        output: what it prints.
        stacks: where its stacks go when it is asked for them.
    """

    rank: int
    pid: int
    connection: Connection
    output: AnonymousFile
    stacks: AnonymousFile

    def close(self) -> None:
        """Lets go of it; its process must have ended."""
        for closable in (self.connection, self.output, self.stacks):
            closable.close()


class ForkServer:
    """One fork server process and the ranks forked from it. :func:`fork_server` keeps the one of this process."""

    def __init__(self) -> None:
        """Starts the process, and returns while it is importing.

        Raises:
            Unjudged: this system has no /proc, or starts no further process.
        """
        if not os.path.isdir("/proc/self/fd"):
            raise Unjudged("/proc is not mounted here, and ranks open what they share through it; mount it")
        self.owner = os.getpid()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(_END_TIMEOUT)
        self._exits: dict[int, int] = {}
        self._forked: list[dict[str, Any]] = []
        self._pools = 0
        self._ready = False
        arguments = [str(self.owner), str(theirs.fileno()), *import_path()]
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, *arguments],
                pass_fds=[theirs.fileno()],
                env=variables(),
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C reaches the controller alone, which ends its ranks itself.
            )
        except OSError as error:
            raise Unjudged(f"{_NOT_STARTED}{error.strerror}{_FEW}") from None
        theirs.close()

    @property
    def alive(self) -> bool:
        """Whether ranks can be forked by this process, now or once the fork server is ready."""
        return os.getpid() == self.owner and self._control.fileno() >= 0 and self.process.poll() is None

    def wait_ready(self) -> None:
        """Returns once ranks can be forked.

        Raises:
            Unjudged: the fork server did not come up.
        """
        deadline = time.monotonic() + _START_TIMEOUT
        while not self._ready:
            self._listen(max(0.0, deadline - time.monotonic()))
            if not self._ready and (time.monotonic() > deadline or not self.alive):
                raise Unjudged("the process that ranks are forked from did not start; its error is printed above")

    def warm_up(self, function: str) -> None:
        """Has the fork server call ``MODULE:FUNCTION`` before it forks again, so that no rank repeats its imports."""
        self.wait_ready()
        with contextlib.suppress(OSError):  # Without a fork server there is nothing to warm; the next fork says so.
            self._control.sendall(json.dumps({"warm_up": function}).encode())

    def fork(self, order: dict[str, Any], shared: Sequence[AnonymousFile], count: int) -> list[Worker]:
        """Starts ``count`` workers, numbered from 0.

        Args:
            order: what they are told, JSON values only: see :meth:`verify.ranks.local.pool.RankPool.start`.
            shared: the files that all of them have: the status page and the rendezvous.
            count: how many.

        Raises:
            Unjudged: the fork server has died or does not answer.
        """
        self.wait_ready()
        self._pools += 1
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
            order_file = AnonymousFile("verify-order", json.dumps(order).encode())
            theirs.callback(order_file.close)
            descriptors = [order_file.descriptor, *(file.descriptor for file in shared)]
            ends = []
            for rank in range(count):
                output, stacks = AnonymousFile(f"verify-output-{rank}"), AnonymousFile(f"verify-stacks-{rank}")
                near, far = socket.socketpair()
                for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                    near.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", _MESSAGE_TIMEOUT, 0))
                connection = Connection(near.detach())
                ours.callback(connection.close)
                ours.callback(output.close)
                ours.callback(stacks.close)
                theirs.callback(far.close)
                descriptors += [far.fileno(), output.descriptor, stacks.descriptor]
                ends.append((connection, output, stacks))
            try:
                socket.send_fds(self._control, [json.dumps({"pool": self._pools}).encode()], descriptors)
            except OSError:
                raise Unjudged(_DEAD) from None
            pids = self._pids_of(self._pools, count)
            ours.pop_all()
        return [Worker(rank, pid, *end) for (rank, pid), end in zip(enumerate(pids), ends, strict=True)]

    def _pids_of(self, pool: int, count: int) -> list[int]:
        """The processes of a pool that has been ordered."""
        deadline = time.monotonic() + _START_TIMEOUT
        pids: dict[int, int] = {}
        while len(pids) < count:
            if time.monotonic() > deadline or not self.alive:
                raise Unjudged(_DEAD)
            self._listen(max(0.0, deadline - time.monotonic()))
            mine = [said for said in self._forked if said["pool"] == pool]
            if refused := next((said["refused"] for said in mine if "refused" in said), ""):
                self._forked.clear()
                self.end_ranks([said["forked"] for said in mine if "forked" in said])
                raise Unjudged(f"{_NOT_STARTED}{refused}{_FEW}")
            pids = {said["rank"]: said["forked"] for said in mine}
        self._forked.clear()
        return [pids[rank] for rank in range(count)]

    def signal(self, pids: Sequence[int], number: int) -> None:
        """Sends signal ``number`` to those of ``pids`` that still live."""
        # Where the fork server is gone, the kernel has killed its children with it.
        with contextlib.suppress(OSError):
            self._control.sendall(json.dumps({"signal": int(number), "pids": list(pids)}).encode())

    def exit_status(self, pid: int, wait: float = 0.0) -> int | None:
        """How ``pid`` ended (negative: the signal that killed it), or None if it has not within ``wait`` seconds."""
        deadline = time.monotonic() + wait
        while pid not in self._exits and self.alive:
            left = deadline - time.monotonic()
            if not self._listen(max(0.0, left)) and left <= 0:
                return None
        return self._exits.get(pid, None if self.alive else -9)

    def end_ranks(self, pids: Sequence[int]) -> None:
        """Kills ``pids`` and returns once they have ended, so that what they held is free for their successors."""
        self.signal(pids, SIGKILL)
        deadline = time.monotonic() + _RANK_END_TIMEOUT
        for pid in pids:
            while self.exit_status(pid, wait=0.2) is None and time.monotonic() < deadline:
                if is_stopped(self.process.pid):
                    self.kill()

    def _listen(self, timeout: float) -> bool:
        """Takes in one message, if any comes within ``timeout``."""
        if not select.select([self._control], [], [], timeout)[0]:
            return False
        try:
            raw = self._control.recv(1 << 16)
        except (ConnectionResetError, TimeoutError):
            raw = b""
        if not raw:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_END_TIMEOUT)
            return False
        said = json.loads(raw)
        if "ready" in said:
            self._ready = True
        elif "pool" in said:
            self._forked.append(said)
        else:
            self._exits[said["exited"]] = said["status"]
        return True

    def kill(self) -> None:
        """Ends a fork server that does not answer; the kernel kills its ranks with it."""
        self.process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_END_TIMEOUT)

    def close(self) -> None:
        """Ends the fork server and with it every rank. In a fork of the controller: only lets go of them."""
        self._control.close()
        if os.getpid() != self.owner:
            return
        if not self._ready:
            self.kill()  # It has no children yet, and importing would go on for seconds.
        try:
            self.process.wait(0.2 if is_stopped(self.process.pid) else _END_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.kill()


_server: ForkServer | None = None


def fork_server() -> ForkServer:
    """This process's fork server, started on the first call. Returns at once, while the server imports torch."""
    global _server
    if _server is None or not _server.alive:
        if _server is not None:
            _server.close()
        _server = ForkServer()
    return _server


@atexit.register
def close_fork_server() -> None:
    """Ends this process's fork server, if there is one."""
    global _server
    if _server is not None:
        _server.close()
        _server = None


def import_path() -> list[str]:
    """Where this process finds modules: a bare checkout need not be installed nor be the working directory."""
    return [os.path.abspath(entry) for entry in sys.path]


def variables() -> dict[str, str]:
    """This process's environment variables as the fork server and its ranks get them."""
    # Libraries read this when they load, in the fork server, before any rank can say how many threads it wants.
    return {"OMP_NUM_THREADS": "1", **os.environ}
