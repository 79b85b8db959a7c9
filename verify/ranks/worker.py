"""One rank: joins its group, then runs tasks until the controller hangs up."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist

# What tasks use: imported here, it is loaded once, before the ranks are forked.
import verify.bagel.denoiser
import verify.bagel.weights
import verify.loops  # noqa: F401
from verify.errors import BadInput
from verify.ranks import settings, wire
from verify.ranks.board import Board, Marker
from verify.ranks.group import ProcessGroup
from verify.ranks.nursery import die_with_parent

# Longer than any task may take: the controller bounds the wait and can say who was missing, the library cannot.
_LIBRARY_TIMEOUT = timedelta(days=1)


@dataclass
class Rank:
    """What a task is given.

    Attributes:
        rank: this rank's number.
        world_size: how many ranks there are.
        device: where its tensors belong.
        backend: gloo or nccl.
        group: the CFG-parallel group.
        marker: to say where it is.
        memo: what tasks keep between calls: models, denoisers.
    """

    rank: int
    world_size: int
    device: torch.device
    backend: str
    group: ProcessGroup
    marker: Marker
    memo: dict[Any, Any] = field(default_factory=dict)

    def environment(self) -> dict[str, Any]:
        """What this rank runs on."""
        return settings.environment(self.device, self.backend)


Task = Callable[..., Any]


def main(rank: int, descriptor: int, order: dict[str, Any]) -> NoReturn:
    """Runs the rank; never returns."""
    die_with_parent(order["nursery"])
    folder = Path(order["folder"])
    _redirect_output(folder / f"output.{rank}")
    stacks = open(folder / f"stack.{rank}", "wb", buffering=0)  # noqa: SIM115  (open for life: a signal handler writes)
    faulthandler.enable(stacks)
    faulthandler.register(signal.SIGUSR1, stacks, all_threads=True)
    sys.path[:] = order["path"]
    os.environ.update(order["variables"])
    connection = Connection(descriptor)
    try:
        context = _join(rank, order, folder)
    except Exception:  # noqa: BLE001  (whatever it is, the controller tells it)
        wire.send(connection, ("raised", traceback.format_exc()), order["controller"])
        os._exit(1)
    wire.send(connection, ("ready", os.getpid()), order["controller"])
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            name, task, arguments = wire.receive(connection)
            context.marker.begin(name)
            wire.send(connection, _run(task, context, arguments), order["controller"])
            sys.stdout.flush()
    os._exit(0)


def _join(rank: int, order: dict[str, Any], folder: Path) -> Rank:
    """Settings first, then the process group: what a library reads once must be right by then."""
    settings.apply_environment()
    settings.apply_flags(order["threads"])
    device = torch.device(order["devices"][rank])
    world_size = len(order["devices"])
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        order["backend"],
        store=dist.FileStore(str(folder / "rendezvous"), world_size),
        rank=rank,
        world_size=world_size,
        timeout=_LIBRARY_TIMEOUT,
        device_id=device if order["backend"] == "nccl" else None,
    )
    marker = Marker(Board(folder / "board", world_size), rank)
    return Rank(rank, world_size, device, order["backend"], ProcessGroup(), marker)


def _run(task: Task, context: Rank, arguments: tuple[Any, ...]) -> tuple[str, Any]:
    """The reply to one task. Nothing that a task raises ends the rank: the controller decides that."""
    try:
        return "done", task(context, *arguments)
    except BadInput as error:
        return "bad input", str(error)
    except BaseException as error:  # noqa: BLE001  (SystemExit of a loop is a failure of that loop)
        return "raised", _own_traceback(error)


def _own_traceback(error: BaseException) -> str:
    """The traceback from the first frame outside this package on: how we came to call it is no news to its author."""
    package = str(Path(verify.__file__).parent)
    frame = error.__traceback__
    while frame is not None and frame.tb_frame.f_code.co_filename.startswith(package):
        frame = frame.tb_next
    return "".join(traceback.format_exception(type(error), error, frame or error.__traceback__))


def _redirect_output(path: Path) -> None:
    """What a loop prints belongs to the report, not between the lines of the progress bar."""
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
