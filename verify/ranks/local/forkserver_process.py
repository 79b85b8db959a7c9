"""The process that all ranks of one controller are forked from.

Importing torch takes seconds and as much of a core. It happens once here, before any thread or CUDA context exists;
ranks are then forked in milliseconds, also to replace dead ones. The fork server has three duties: it forks ranks when
told, says how each ended, and sees to it that nothing outlives the controller, however the controller ends.

Who ends whom: the kernel kills the ranks when the fork server ends. The fork server ends when its socket to the
controller closes; the kernel wakes it with SIGCONT when the controller ends, should it be stopped or the socket be held
open by a child of the controller. The fork server adopts what ranks leave behind (processes that a loop started) and
kills it.

Forked ranks share Python's hash seed, so that a loop whose result depends on the order of a set of strings agrees on
them and may not on processes started one by one. A pool may therefore ask for fresh interpreters.

Why not multiprocessing's fork server, which can preload modules too: it does not end the processes that a killed rank
has started, nor its own children when it is stopped or killed with its controller. It runs the user's main script anew
in each child, so that a script without a main guard would start ranks in ranks. There is one a process, which the
user's own code may have started first, and it can import nothing more once it runs.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any, NoReturn

from verify.ranks.failure.processes import adopt_orphans, children, signal_at_parents_end
from verify.ranks.local.anonymous import AnonymousFile, path_of

# What the kernel lets one message carry (SCM_MAX_FD).
MOST_DESCRIPTORS = 253
_END_TIMEOUT = 5.0
# Imported here once, and not by each rank again. By name: ranks do not depend on what they run.
_NEEDED_BY_TASKS = ("verify.tasks.trace_loop", "verify.targets.builtin", "torch.utils._device")
_FRESH_RANK = """import sys
sys.path[:] = sys.argv[2:]
from verify.ranks.local.worker import main_by_order
main_by_order(int(sys.argv[1]))"""


def start(controller: int, descriptor: int) -> None:
    """Runs the fork server of process ``controller`` on the socket ``descriptor``."""
    signal_at_parents_end(controller, signal.SIGKILL)  # While it is importing it watches nothing and has no children.
    adopt_orphans()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in _NEEDED_BY_TASKS:
            importlib.import_module(module)
        from verify.ranks.settings import apply_flags

    apply_flags(threads=1)  # Here too: what a first call imports, ranks then inherit.
    gc.collect()
    # What is alive now is shared with every rank; collecting it there would copy its pages.
    gc.freeze()
    _Server(controller, socket.socket(fileno=descriptor)).serve()


class _Server:
    """Forks, reaps, ends."""

    def __init__(self, controller: int, control: socket.socket) -> None:
        self._controller = controller
        self._control = control
        self._ranks: set[int] = set()
        self._wakeup, self._wakeup_write = os.pipe()
        os.set_blocking(self._wakeup_write, False)
        signal.set_wakeup_fd(self._wakeup_write, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGCONT):
            signal.signal(number, lambda *_: None)
        signal_at_parents_end(controller, signal.SIGCONT)

    def serve(self) -> None:
        """Until the controller has ended or hung up."""
        try:
            self._tell({"ready": os.getpid()})
            while os.getppid() == self._controller:
                control = self._control.fileno()
                ready, _, _ = select.select([control, self._wakeup], [], [])
                if self._wakeup in ready:
                    os.read(self._wakeup, 4096)
                self._reap()
                if control in ready and not self._obey():
                    return
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            self._end()

    def _obey(self) -> bool:
        """Takes one order; False if there will be no more."""
        message, descriptors, _, _ = socket.recv_fds(self._control, 1 << 16, MOST_DESCRIPTORS)
        if not message:
            return False
        said = json.loads(message)
        for pid in said.get("pids", ()):
            if pid in self._ranks:  # Only what has not been reaped: a number may be another process's by now.
                os.kill(pid, said["signal"])
        if "warm_up" in said:
            self._warm_up(*said["warm_up"].split(":"))
        if descriptors:
            self._fork(said["pool"], *descriptors)
        return True

    def _warm_up(self, module: str, function: str) -> None:
        """Calls a function for what it imports. Ranks can do without: what it raises, they will say."""
        # While it is importing it watches nothing, as at its start.
        signal_at_parents_end(self._controller, signal.SIGKILL)
        with warnings.catch_warnings(), contextlib.suppress(Exception):
            warnings.simplefilter("ignore")
            getattr(importlib.import_module(module), function)()
        signal_at_parents_end(self._controller, signal.SIGCONT)
        gc.collect()
        gc.freeze()

    def _fork(self, pool: int, order: int, *descriptors: int) -> None:
        """Starts ranks; each inherits what all share (status page, rendezvous) and three descriptors of its own."""
        # Descriptors come in order: order, status page, rendezvous, then (socket, output, stacks) of each rank.
        shared, own = descriptors[:2], descriptors[2:]
        server = os.getpid()
        for rank in range(len(own) // 3):
            kept = (*shared, *own[3 * rank : 3 * rank + 3])
            try:
                pid = os.fork()
            except OSError as error:
                self._tell({"refused": error.strerror, "pool": pool})
                break
            if pid == 0:
                self._become_rank(rank, server, order, kept, [d for d in own if d not in kept])
            self._ranks.add(pid)
            self._tell({"forked": pid, "rank": rank, "pool": pool})
        for descriptor in (order, *descriptors):
            os.close(descriptor)

    def _become_rank(self, rank: int, server: int, order: int, kept: tuple[int, ...], foreign: list[int]) -> NoReturn:
        """In the forked child: drops all that is not its own, so that a dead peer's socket is seen to close."""
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGCONT):
                signal.signal(number, signal.SIG_DFL)
            for descriptor in (self._control.fileno(), self._wakeup, self._wakeup_write, *foreign):
                os.close(descriptor)
            told: dict[str, Any] = json.loads(Path(path_of(order)).read_bytes())
            os.close(order)
            if told["fresh_interpreters"]:
                _exec_interpreter(rank, server, kept, told)
            from verify.ranks.local import worker

            worker.main(rank, server, kept, told)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)

    def _reap(self) -> None:
        ended = False
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                ended = True
                if pid in self._ranks:
                    self._ranks.discard(pid)
                    self._tell({"exited": pid, "status": os.waitstatus_to_exitcode(status)})
        if ended:
            _kill(children(os.getpid()) - self._ranks)

    def _end(self) -> None:
        """Kills all children and waits for them: where nobody reaps orphans, they would stay as zombies."""
        deadline = time.monotonic() + _END_TIMEOUT
        with contextlib.suppress(ChildProcessError):
            while time.monotonic() < deadline:
                _kill(self._ranks | children(os.getpid()))
                pid, _ = os.waitpid(-1, os.WNOHANG)
                self._ranks.discard(pid)
                if pid == 0:
                    time.sleep(0.002)

    def _tell(self, message: dict[str, Any]) -> None:
        self._control.sendall(json.dumps(message).encode())


def _exec_interpreter(rank: int, server: int, kept: tuple[int, ...], told: dict[str, Any]) -> NoReturn:
    """Becomes a Python of its own, as a launcher starts one, with a hash seed that no other rank has.

    Where PYTHONHASHSEED is set, as tox does, ranks would share it and agree on the order of a set: each gets another.
    """
    signal_at_parents_end(server, signal.SIGKILL)  # Holds beyond the exec.
    for descriptor in kept:
        os.set_inheritable(descriptor, True)
    output = kept[3]
    os.dup2(output, 1)  # What is printed while torch is being imported is the rank's too.
    os.dup2(output, 2)
    variables = {**told["variables"], "PYTHONHASHSEED": str(rank + 1)}
    order_of_rank = [rank, server, kept, {**told, "variables": variables}]
    order = AnonymousFile("verify-order", json.dumps(order_of_rank).encode()).descriptor
    os.set_inheritable(order, True)
    words = [sys.executable, "-c", _FRESH_RANK, str(order), *told["path"]]
    os.execve(sys.executable, words, variables)


def _kill(pids: set[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
