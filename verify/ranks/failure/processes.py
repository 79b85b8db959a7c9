"""What the kernel says of other processes."""

from __future__ import annotations

from pathlib import Path

GONE = ("", 0)


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
