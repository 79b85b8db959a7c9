"""What ranks are asked to do in these tests. Ranks import this module by its name, so it imports little."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy
import torch
import torch.distributed as dist
from torch import Tensor

from verify.environment.properties import BY_NAME
from verify.errors import BadInput, Unjudged
from verify.ranks.rank import Rank
from verify.ranks.settings import FLAGS
from verify.tasks.stage import Plan
from verify.tasks.trace_loop import trace_loop
from verify.trace.trace import Trace

VICTIM = 1


def identity(rank: Rank, *values: Any) -> Any:
    return values[0] if len(values) == 1 else (rank.rank, *values)


def expected(rank: Rank, size: int, result: Any) -> Any:
    """Announces tensors of ``size`` bytes and returns ``result``, or raises it."""
    rank.expect(size)
    rank.expect(size)
    if isinstance(result, Exception):
        raise result
    return result


def process(rank: Rank) -> tuple[int, int, int]:
    return rank.rank, rank.world_size, os.getpid()


def seconds_of_products(rank: Rank, count: int) -> float:
    """Computes for a while, and says how long that took."""
    began = time.perf_counter()
    matrix = torch.eye(128)
    for _ in range(count):
        matrix = matrix @ matrix
    return time.perf_counter() - began


def remember(rank: Rank, value: int | None = None) -> int | None:
    if value is not None:
        rank.memo["remembered"] = value + rank.rank
    kept: int | None = rank.memo.get("remembered")
    return kept


def draws(rank: Rank) -> tuple[float, float, float]:
    """What a loop gets that draws noise without a seed."""
    return random.random(), float(numpy.random.rand()), float(torch.rand(()))


def surroundings(rank: Rank) -> dict[str, Any]:
    return {
        "folder": os.getcwd(),
        "path": list(sys.path),
        "variables": dict(os.environ),
        "flags": {flag.name: BY_NAME[flag.name].read() for flag in FLAGS},
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "threads": torch.get_num_threads(),
        "openmp": torch.__config__.parallel_info(),
        "environment": rank.environment(),
        "descriptors": sorted(os.readlink(f"/proc/self/fd/{fd}") for fd in _descriptors()),
        "parent": os.getppid(),
        "interruptible": signal.getsignal(signal.SIGINT) is not signal.SIG_IGN,
    }


def _descriptors() -> list[str]:
    return [fd for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")]


def gathered(rank: Rank, tensors: list[Tensor], transposed: bool) -> list[Tensor]:
    own = tensors[rank.rank]
    return rank.group.all_gather(own.mT.contiguous().mT if transposed else own)


def broadcast(rank: Rank, tensors: list[Tensor], transposed: bool, src: int) -> tuple[Tensor, Tensor, bool]:
    """What the tensor is after a broadcast, what lies around it in memory, and whether it was done in place."""
    own = tensors[rank.rank]
    rows, columns = own.shape[-2:]
    memory = torch.zeros(*own.shape[:-2], columns + 2, rows + 2, dtype=own.dtype)
    view = memory[..., 1:-1, 1:-1].mT if transposed else memory.mT[..., 1:-1, 1:-1].contiguous()
    view.copy_(own)
    result = rank.group.broadcast(view, src)
    return view.clone(), memory, result is view


def refuse(rank: Rank, kind: str) -> None:
    """Rank 1 alone says no; after bad input, the others wait for it."""
    if rank.rank == VICTIM:
        raise BadInput("the value is 3, expected 4; use 4") if kind == "bad input" else Unjudged("too little memory")
    if kind == "bad input":
        rank.group.all_gather(torch.zeros(1))


class RaisesWhenRead:
    """Travels well and cannot be unpacked."""

    def __reduce__(self) -> Any:
        return _raise, ("unpacking went wrong",)


class RaisesWhenPickled:
    def __reduce__(self) -> Any:
        raise ValueError("packing went wrong")


def _raise(text: str) -> None:
    raise ValueError(text)


def fail(rank: Rank, way: str, step: int = 3, victims: tuple[int, ...] = (VICTIM,), wait: bool = True) -> Any:
    """Gathers at each step; at ``step`` the victims fail in their ``way``, and the others wait for them if asked to.

    Everybody marks where they are.
    """
    for done in range(step):
        _gather(rank, done)
        rank.status.finished(done)
    if rank.rank in victims:
        result = WAYS[way](rank)
        if result is not None:
            return result
    if wait:
        _gather(rank, step)
    return "done"


def _gather(rank: Rank, step: int) -> None:
    rank.status.collective("all_gather", 1, step)
    rank.group.all_gather(torch.zeros(4))
    rank.status.activity("")


def _segfault(rank: Rank) -> None:
    rank.status.activity("velocity of text")
    ctypes.string_at(8)


def _sleep_in_python(rank: Rank) -> None:
    rank.status.activity("velocity of text")
    while True:
        time.sleep(0.01)


def _stuck_in_a_native_call(rank: Rank) -> None:
    rank.status.activity("velocity of text")
    # Neither releases the interpreter lock nor returns: as a kernel that spins.
    ctypes.PyDLL(None).sleep(600)


def _close_connection(rank: Rank) -> None:
    for fd in map(int, _descriptors()):
        if fd > 2 and "socket" in os.readlink(f"/proc/self/fd/{fd}"):
            with contextlib.suppress(OSError):
                os.close(fd)
    time.sleep(600)


def _print_and_raise(rank: Rank) -> None:
    for line in range(200):
        print(f"{line:06d} " * 10000)  # 70 kB
    raise RuntimeError("after much output")


def _raise_in_thread_and_die(rank: Rank) -> None:
    thread = threading.Thread(target=lambda: os.kill(os.getpid(), signal.SIGKILL))
    thread.start()
    time.sleep(600)


def _run_out_of_memory(rank: Rank) -> None:
    rank.status.activity("velocity of text")
    # What this process has, and a little more.
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (64 << 20),) * 2)
    torch.zeros(1 << 30)


WAYS: dict[str, Any] = {
    "memory": _run_out_of_memory,
    "MemoryError": lambda rank: bytearray(1 << 62),
    "SIGKILL": lambda rank: os.kill(os.getpid(), signal.SIGKILL),
    "SIGSEGV": _segfault,
    "abort": lambda rank: os.abort(),
    "os._exit": lambda rank: os._exit(7),
    "os._exit(0)": lambda rank: os._exit(0),
    "SystemExit": lambda rank: sys.exit(0),
    "KeyboardInterrupt": lambda rank: _interrupt(),
    "exception": lambda rank: _raise("the scheduler ran out of steps\nand of lines"),
    "sleep": _sleep_in_python,
    "native": _stuck_in_a_native_call,
    "SIGSTOP": lambda rank: os.kill(os.getpid(), signal.SIGSTOP),
    "left out": lambda rank: "done",  # The others wait in a collective that this rank never enters.
    "twice": lambda rank: _gather(rank, 3),  # One collective more: this rank waits in the last one.
    "unpicklable": lambda rank: threading.Lock(),
    "raises when pickled": lambda rank: RaisesWhenPickled(),
    "raises when read": lambda rank: RaisesWhenRead(),
    "meta": lambda rank: torch.zeros(3, device="meta"),
    "closes": _close_connection,
    "prints": _print_and_raise,
    "thread": _raise_in_thread_and_die,
}


def _interrupt() -> None:
    signal.raise_signal(signal.SIGINT)  # Ranks ignore it,
    raise KeyboardInterrupt  # and this is a loop's own.


def start_a_process_and_sleep(rank: Rank, seconds: float) -> None:
    """As a loop that starts a compiler or a server and never ends."""
    subprocess.Popen(["sleep", "600"], start_new_session=True)
    time.sleep(seconds)


def leave_a_process(rank: Rank) -> int:
    return subprocess.Popen(["sleep", "600"], start_new_session=True).pid


def loop_until_killed(rank: Rank, steps: int) -> int:
    """Gathers and computes, quickly."""
    for step in range(steps):
        _gather(rank, step)
        rank.status.activity("velocity of gen")
        torch.ones(64, 64) @ torch.ones(64, 64)
        rank.status.finished(step)
    return steps


def trace_under_comm_debug_mode(rank: Rank, plan: Plan) -> tuple[Trace | None, dict[str, int]]:
    """The trace of a loop, and how many collectives PyTorch's own instrumentation has counted meanwhile."""
    from torch.distributed.tensor.debug import CommDebugMode

    trace_loop(rank, plan)  # The model is built and kept: only the loop itself is counted.
    counter = CommDebugMode()
    counter.advanced_module_tracker = _OneModule()  # type: ignore[assignment]
    with counter:
        trace = trace_loop(rank, plan)
    return trace, {str(op): count for op, count in counter.get_comm_counts().items()}


class _OneModule:
    """In place of the mode's account by module, which fails on a second call of any module that no other one holds."""

    name = "loop"
    is_bw = activation_checkpointing = False
    module_parents_dict: ClassVar[dict[str, set[str]]] = {"loop": set()}

    def __enter__(self) -> None:
        """Nothing to set up."""

    def __exit__(self, *_: object) -> None:
        """Nor to take down."""


def numbers(rank: Rank, given: str) -> dict[str, Any]:
    """What a rank knows of its numbers, and what it gathers and is sent over its group."""
    own = torch.tensor([dist.get_rank()])
    return {
        "given": given,
        "rank": rank.group.rank,
        "of": rank.group.world_size,
        "world": dist.get_world_size(),
        "global": rank.global_rank,
        "gathered": [int(each) for each in rank.group.all_gather(own)],
        "from rank 1": int(rank.group.broadcast(own.clone(), 1)),
        "hash": hash("the order of a set of strings"),
    }


def destroy_the_default_group(rank: Rank) -> bool:
    """As an engine that tidies up."""
    dist.destroy_process_group()
    return True


def has_imported(rank: Rank, module: str) -> bool:
    """Whether a module is there already."""
    return module in sys.modules
