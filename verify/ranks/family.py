"""The controller's end of the nursery: fork ranks, signal them, learn how they ended."""

from __future__ import annotations

import atexit
import json
import os
import select
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from verify.errors import Unjudged

_START_TIMEOUT = 120.0
_MESSAGE_TIMEOUT = 10


class Family:
    """One nursery process and the ranks forked from it. A controller needs one; :func:`family` keeps it."""

    def __init__(self) -> None:
        self.scratch = Path(tempfile.mkdtemp(prefix="verify-ranks-"))
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._exits: dict[int, int] = {}
        self._forked: list[dict[str, Any]] = []
        self._pools = 0
        # Libraries read these when they load, in the nursery, before any rank can say how many threads it wants.
        variables = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "verify.ranks.nursery", str(theirs.fileno()), str(self.scratch), str(os.getpid())],
            pass_fds=[theirs.fileno()],
            env=variables | {"PYTHONPATH": os.pathsep.join(filter(None, [_root(), os.environ.get("PYTHONPATH")]))},
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches the controller alone, which ends its ranks itself.
        )
        theirs.close()
        self._ready = False

    def wait_ready(self) -> None:
        """Returns once ranks can be forked.

        Raises:
            Unjudged: the nursery did not come up.
        """
        deadline = time.monotonic() + _START_TIMEOUT
        while not self._ready:
            self._listen(max(0.0, deadline - time.monotonic()))
            if not self._ready and (time.monotonic() > deadline or self.process.poll() is not None):
                raise Unjudged("the process that ranks are forked from did not start; its error is printed above")

    def fork(self, order: dict[str, Any], world_size: int) -> tuple[list[int], list[Connection]]:
        """Forks ``world_size`` ranks; returns their process ids and connections in rank order."""
        self.wait_ready()
        self._pools += 1
        pairs = [socket.socketpair() for _ in range(world_size)]
        for ours, _ in pairs:
            # A rank that stops in the middle of a message must not stop its controller.
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                ours.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", _MESSAGE_TIMEOUT, 0))
        message = json.dumps(order | {"pool": self._pools, "nursery": self.process.pid}).encode()
        socket.send_fds(self._control, [message], [theirs.fileno() for _, theirs in pairs])
        for _, theirs in pairs:
            theirs.close()
        deadline = time.monotonic() + _START_TIMEOUT
        mine: dict[int, int] = {}
        while len(mine) < world_size:
            self._listen(max(0.0, deadline - time.monotonic()))
            mine = {said["rank"]: said["forked"] for said in self._forked if said["pool"] == self._pools}
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise Unjudged("ranks could not be forked: the nursery has died")
        return [mine[rank] for rank in range(world_size)], [Connection(ours.detach()) for ours, _ in pairs]

    def signal(self, pids: list[int], number: int) -> None:
        """Sends signal ``number`` to those of ``pids`` that still live."""
        try:
            self._control.sendall(json.dumps({"signal": int(number), "pids": pids}).encode())
        except OSError:
            return  # The nursery is gone, and the kernel has killed its children with it.

    def exit_status(self, pid: int, wait: float = 0.0) -> int | None:
        """How ``pid`` ended (negative: the signal that killed it), or None if it has not within ``wait`` seconds."""
        deadline = time.monotonic() + wait
        while pid not in self._exits:
            left = deadline - time.monotonic()
            if not self._listen(max(0.0, left)) and left <= 0:
                break
            if self.process.poll() is not None:
                self._exits.setdefault(pid, -9)
        return self._exits.get(pid)

    def _listen(self, timeout: float) -> bool:
        """Takes in one message, if any comes within ``timeout``."""
        if not select.select([self._control], [], [], timeout)[0]:
            return False
        try:
            raw = self._control.recv(1 << 16)
        except ConnectionResetError:
            raw = b""
        if not raw:
            self.process.wait(5)
            return False
        said = json.loads(raw)
        if "ready" in said:
            self._ready = True
        elif "forked" in said:
            self._forked.append(said)
        else:
            self._exits[said["exited"]] = said["status"]
        return True

    def close(self) -> None:
        """Ends the nursery and with it every rank, and removes their files."""
        self._control.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(5)
        shutil.rmtree(self.scratch, ignore_errors=True)


_family: Family | None = None


def family() -> Family:
    """This process's nursery, started on the first call; it returns at once, while torch is still being imported."""
    global _family
    if _family is None or _family.process.poll() is not None:
        if _family is not None:
            _family.close()
        _family = Family()
    return _family


@atexit.register
def close_family() -> None:
    """Ends this process's nursery, if there is one."""
    global _family
    if _family is not None:
        _family.close()
        _family = None


def _root() -> str:
    """The folder that holds this package: a bare checkout need not be installed nor be the working directory."""
    return str(Path(__file__).parents[2])
