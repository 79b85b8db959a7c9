"""What the kernel says of other processes, and what it does when one ends."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

GONE = ("", 0)
# Of prctl(2), for which Python has no function.
_SET_PDEATHSIG, _SET_CHILD_SUBREAPER = 1, 36


def state_and_parent(pid: int | str) -> tuple[str, int]:
    """The letter by which the kernel describes a process (``T``: stopped, ``Z``: ended) and its parent's number.

    ``GONE`` if there is no such process.
    """
    try:
        # The name, in parentheses, may hold anything.
        state, parent = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
    except (OSError, ValueError):
        return GONE
    return state, int(parent)


def is_stopped(pid: int) -> bool:
    """Whether SIGSTOP or a debugger holds it."""
    return state_and_parent(pid)[0] in ("T", "t")


def children(parent: int) -> set[int]:
    """The processes that have this parent; not every kernel lists them, so all are asked."""
    entries = (entry.name for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return {int(pid) for pid in entries if state_and_parent(pid)[1] == parent}


def signal_at_parents_end(parent: int, number: int) -> None:
    """Has the kernel send ``number`` to this process when its parent ends; ends it now if that has happened."""
    _prctl(_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os._exit(1)


def adopt_orphans() -> None:
    """Makes this process the parent of whatever its descendants leave behind."""
    _prctl(_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)
