"""Pools that all tests of a session share, and what is left of processes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from verify.ranks.failure.processes import state_and_parent
from verify.ranks.local.pool import RankPool
from verify.ranks.plan import place
from verify.runner.run import pool_for


def shared_pool(world_size: int) -> RankPool:
    """The pool that ``verify run`` would use on the CPU; up."""
    pool = pool_for(place(world_size, "cpu").spec)
    pool.start()
    return pool


def wait_until(condition: Callable[[], bool], timeout: float) -> bool:
    """Whether the condition came true within ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has asked about does not."""
    return state_and_parent(pid)[0] not in ("", "Z")


def marked(mark: str) -> dict[int, str]:
    """All running processes whose environment holds ``mark``, whoever their parent is now, and their command lines."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if mark.encode() in (entry / "environ").read_bytes():
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    found[int(entry.name)] = command
            except OSError:
                continue
    return found
