"""One rank: joins its group, then runs tasks until the controller hangs up."""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import io
import os
import random
import signal
import sys
import traceback
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

import numpy
import torch
import torch.distributed as dist

import verify
from verify.errors import BadInput, Unjudged
from verify.ranks import settings
from verify.ranks.failure.status import StatusPage, StatusWriter
from verify.ranks.group import ProcessGroup
from verify.ranks.local import wire
from verify.ranks.local.anonymous import path_of
from verify.ranks.local.forkserver_process import signal_at_parents_end
from verify.ranks.rank import Rank, Task

# Longer than any task may take: the controller bounds the wait and can say who was missing, the library cannot.
_LIBRARY_TIMEOUT = timedelta(days=1)


def main(rank: int, server: int, descriptors: tuple[int, ...], order: dict[str, Any]) -> NoReturn:
    """Runs the rank; never returns.

    Args:
        rank: its number.
        server: the process it was forked from.
        descriptors: of the board, the rendezvous, the socket, the output and the stacks.
        order: what :meth:`verify.ranks.local.pool.RankPool.start` says of the pool.
    """
    signal_at_parents_end(server, signal.SIGKILL)  # Also if this process is stopped or stuck in native code.
    board, rendezvous, link, output, stacks = descriptors
    _redirect_output(output)
    faulthandler.enable(stacks)
    faulthandler.register(signal.SIGUSR1, stacks, all_threads=True)
    sys.path[:] = order["path"]
    os.environ.clear()
    os.environ.update(order["variables"])
    line = _Line(Connection(link), order["controller"])
    # The controller hangs up when it has had enough of this rank, at any moment.
    with contextlib.suppress(EOFError, OSError):
        try:
            context = _join(rank, order, board, rendezvous)
        except Exception as error:
            line.reply(raised(error, traceback.format_exc()))
            os._exit(1)
        context.expect = line.expect
        line.reply(("ready", os.getpid(), ""))
        while True:
            line.reply(_serve(line.inbox, context))
    os._exit(0)


def _join(rank: int, order: dict[str, Any], board: int, rendezvous: int) -> Rank:
    """Settings first, then the process group: what a library reads once must be right by then."""
    settings.apply_environment()
    settings.apply_flags(order["threads"])
    device = torch.device(order["devices"][rank])
    world_size = len(order["devices"])
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        order["backend"],
        store=dist.FileStore(path_of(rendezvous), world_size),  # type: ignore[attr-defined]
        rank=rank,
        world_size=world_size,
        timeout=_LIBRARY_TIMEOUT,
        device_id=device if order["backend"] == "nccl" else None,
    )
    status = StatusWriter(StatusPage(board, world_size), rank)
    return Rank(rank, world_size, device, order["backend"], ProcessGroup(), status)


def _serve(inbox: wire.Inbox, context: Rank) -> tuple[str, Any, str]:
    """Takes one task and returns the reply: kind, value, traceback."""
    try:
        name, folder, task, arguments = inbox.receive()
    except wire.Unreadable as error:
        text = str(error)
        return "raised", f"{text.strip().splitlines()[-1]} (the task could not be read)", text
    context.status.begin(name)
    with contextlib.suppress(OSError):
        os.chdir(folder)  # File names that a task is given are meant from where the controller is.
    seed(context.rank)
    return run_task(task, context, arguments)


def seed(rank: int) -> None:
    """Seeds every generator that a loop might draw from, on each rank differently.

    Ranks are forked from one process and would otherwise all draw the same: a loop that forgets to share its noise
    would look right. From task to task the same, so that what is seen can be seen again.
    """
    random.seed(rank)
    numpy.random.seed(rank)
    torch.manual_seed(rank)


def run_task(task: Task, context: Rank, arguments: tuple[Any, ...]) -> tuple[str, Any, str]:
    """The reply to one task. Nothing that a task raises ends the rank: the controller decides that."""
    try:
        return "done", task(context, *arguments), ""
    except BadInput as error:
        return "bad input", str(error), ""
    except Unjudged as reason:
        return "unjudged", str(reason), ""
    except BaseException as error:  # SystemExit of a loop is a failure of that loop.
        return raised(error, _own_traceback(error))
    finally:
        context.held.restore()  # The next task begins as this one did.


def raised(error: BaseException, trace: str) -> tuple[str, Any, str]:
    """The reply to an exception: its last line in words, notes and nested exceptions in the trace only."""
    lines = "".join(traceback.format_exception_only(type(error), error)).strip().splitlines()
    return "raised", lines[0] if not isinstance(error, SyntaxError) else lines[-1], trace


class _Line:
    """A rank's end of the connection to the controller."""

    def __init__(self, connection: Connection, controller: int) -> None:
        self.inbox = wire.Inbox(connection)
        self._connection, self._controller = connection, controller
        self._announced: wire.Memory | None = None

    def expect(self, size: int) -> None:
        """As ``expect`` of :class:`Rank`. Small results need no memory of their own; one announcement is enough."""
        if self._announced is None and size >= wire.LARGE:
            self._announced = wire.announce(self._connection, size, self._controller)

    def reply(self, reply: tuple[str, Any, str]) -> None:
        """Sends a reply; if the result cannot travel, says that instead."""
        announced, self._announced = self._announced, None
        try:
            packed = wire.pack(reply, announced)
        except BaseException as error:  # A result's own code runs while it is pickled.
            kind, what, trace = raised(error, traceback.format_exc())
            packed = wire.pack((kind, f"{what} (the result could not be sent)", trace))
        finally:
            if announced is not None:
                announced.close()
        with packed:
            wire.send(self._connection, packed, self._controller)


def _own_traceback(error: BaseException) -> str:
    """The traceback from the first frame outside this package on: how we came to call it is no news to its author."""
    package = str(Path(verify.__file__).parent)
    frame = error.__traceback__
    while frame is not None and frame.tb_frame.f_code.co_filename.startswith(package):
        frame = frame.tb_next
    return "".join(traceback.format_exception(type(error), error, frame or error.__traceback__))


def _redirect_output(output: int) -> None:
    """What a loop prints belongs to the report, not between the lines of the progress bar."""
    # Appending: the controller may forget what is there already.
    fcntl.fcntl(output, fcntl.F_SETFL, fcntl.fcntl(output, fcntl.F_GETFL) | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)  # A rank may end without emptying its buffers.
