"""The process that all ranks of one controller are forked from.

Importing torch takes seconds and as much of a core. It happens once here, before any thread or CUDA context exists;
ranks are then forked in milliseconds, also to replace dead ones. The nursery has three duties: fork ranks when told,
say how each ended, and see to it that nothing outlives the controller, however that one ends.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import select
import shutil
import signal
import socket
import sys
import traceback
import warnings
from typing import Any, NoReturn

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Has the kernel kill this process when its parent ends, even if it is stopped or stuck in native code."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def main() -> None:
    """Serves fork requests on the socket whose descriptor is the first argument, until its other end is closed."""
    control = socket.socket(fileno=int(sys.argv[1]))
    scratch = sys.argv[2]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import verify.ranks.worker  # noqa: F401  (what every rank will need)
        from verify.ranks.settings import apply_flags

    apply_flags(threads=1)  # Here too: the first call imports for a second what ranks then inherit.
    gc.collect()
    # What is alive now is shared with every rank; collecting it there would copy its pages.
    gc.freeze()
    wakeup_read, wakeup_write = os.pipe()
    os.set_blocking(wakeup_write, False)
    signal.set_wakeup_fd(wakeup_write)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    children: set[int] = set()
    try:
        _tell(control, {"ready": os.getpid()})
        while True:
            select.select([control, wakeup_read], [], [])
            if select.select([wakeup_read], [], [], 0)[0]:
                os.read(wakeup_read, 4096)
            _reap(control, children)
            if not select.select([control], [], [], 0)[0]:
                continue
            message, descriptors, _, _ = socket.recv_fds(control, 1 << 18, 64)
            if not message:
                break
            order = json.loads(message)
            for pid in order.get("pids", ()):
                if pid in children:  # Only what has not been reaped: a number may be another process's by now.
                    os.kill(pid, order["signal"])
            for rank, descriptor in enumerate(descriptors):
                pid = os.fork()
                if pid == 0:
                    _become_rank(rank, descriptor, order, [control.fileno(), wakeup_read, wakeup_write, *descriptors])
                children.add(pid)
                _tell(control, {"forked": pid, "rank": rank, "pool": order["pool"]})
            for descriptor in descriptors:
                os.close(descriptor)
    except (BrokenPipeError, ConnectionResetError):
        pass
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(scratch, ignore_errors=True)


def _become_rank(rank: int, descriptor: int, order: dict[str, Any], inherited: list[int]) -> NoReturn:
    """In the forked child: keeps its own socket alone, so that a dead peer's socket is seen to close, and never returns."""
    try:
        for other in inherited:
            if other != descriptor:
                os.close(other)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        gc.unfreeze()
        from verify.ranks import worker

        worker.main(rank, descriptor, order)
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    finally:
        os._exit(1)


def _reap(control: socket.socket, children: set[int]) -> None:
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        children.discard(pid)
        _tell(control, {"exited": pid, "status": os.waitstatus_to_exitcode(status)})


def _tell(control: socket.socket, message: dict[str, Any]) -> None:
    control.sendall(json.dumps(message).encode())


if __name__ == "__main__":
    die_with_parent(int(sys.argv[3]))
    main()
