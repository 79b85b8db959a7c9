"""One rank: joins its group, then runs tasks until the controller hangs up."""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import io
import json
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from verify.ranks import settings
from verify.ranks.failure.answer import Answer, AnswerKind
from verify.ranks.failure.processes import signal_at_parents_end
from verify.ranks.failure.status import StatusPage, StatusWriter
from verify.ranks.group import LIBRARY_TIMEOUT, ProcessGroup, new_group
from verify.ranks.local import wire
from verify.ranks.local.anonymous import path_of
from verify.ranks.rank import Rank, run_task, seed


def main(rank: int, server: int, descriptors: Sequence[int], order: dict[str, Any]) -> NoReturn:
    """Runs the rank; never returns.

    Args:
        rank: its global number.
        server: the fork server that started it.
        descriptors: of the status page, the rendezvous, the socket, the output and the stacks.
        order: what :meth:`verify.ranks.local.pool.RankPool.start` says of the pool.
    """
    signal_at_parents_end(server, signal.SIGKILL)  # Also if this process is stopped or stuck in native code.
    page, rendezvous, link, output, stacks = descriptors
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
            context = _join(rank, order, page, rendezvous)
        except Exception as error:
            line.reply(replace(Answer.of_error(error), trace=traceback.format_exc()))
            os._exit(1)
        context.expect = line.expect
        line.reply(Answer(AnswerKind.READY, os.getpid()))
        while True:
            line.reply(_serve(line.inbox, context))
    os._exit(0)


def main_by_order(descriptor: int) -> NoReturn:
    """The same in a fresh interpreter, which reads the arguments from ``descriptor``."""
    arguments = json.loads(Path(path_of(descriptor)).read_bytes())
    os.close(descriptor)
    main(*arguments)


def _join(rank: int, order: dict[str, Any], page: int, rendezvous: int) -> Rank:
    """Settings first, then the process group: what a library reads once must be right by then."""
    settings.apply_environment()
    settings.apply_flags(order["threads"])
    device = torch.device(order["devices"][rank])
    processes, members = len(order["devices"]), order["group"]
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        order["backend"],
        store=dist.FileStore(path_of(rendezvous), processes),  # type: ignore[attr-defined]
        rank=rank,
        world_size=processes,
        timeout=LIBRARY_TIMEOUT,
        device_id=device if order["backend"] == "nccl" else None,
    )
    # Processes outside the group get no task.
    group = new_group(members) if rank in members and members != [*range(processes)] else None
    return Rank(
        members.index(rank) if rank in members else rank,
        len(members),
        device,
        order["backend"],
        ProcessGroup(group),
        StatusWriter(StatusPage(page, processes), rank),
        world=dist.group.WORLD,
        global_rank=rank,
    )


def _serve(inbox: wire.Inbox, context: Rank) -> Answer:
    """Takes one task and returns the answer."""
    try:
        name, folder, task, arguments = inbox.receive()
    except wire.Unreadable as error:
        text = str(error)
        return Answer(AnswerKind.RAISED, f"{text.strip().splitlines()[-1]} (the task could not be read)", text)
    context.status.begin(name)
    with contextlib.suppress(OSError):
        os.chdir(folder)  # File names that a task is given are meant from where the controller is.
    seed(context.rank)
    return run_task(task, context, arguments)


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

    def reply(self, answer: Answer) -> None:
        """Sends an answer; if the result cannot travel, says that instead."""
        announced, self._announced = self._announced, None
        try:
            packed = wire.pack(answer, announced)
        except BaseException as error:  # A result's own code runs while it is pickled.
            failed = Answer.of_error(error, " (the result could not be sent)")
            packed = wire.pack(replace(failed, kind=AnswerKind.RAISED, trace=traceback.format_exc()))
        finally:
            if announced is not None:
                announced.close()
        with packed:
            wire.send(self._connection, packed, self._controller)


def _redirect_output(output: int) -> None:
    """What a loop prints belongs to the report, not between the lines of the progress bar."""
    # Appending: the controller may forget what is there already.
    fcntl.fcntl(output, fcntl.F_SETFL, fcntl.fcntl(output, fcntl.F_GETFL) | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)  # A rank may end without emptying its buffers.
