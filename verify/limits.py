"""What a container or batch system lets this process have of the machine, by control groups of either version."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/")
# What version 1 writes where there is no limit is a number that no machine reaches.
_NO_LIMIT = 1 << 60


def usable_cores(root: Path = _ROOT) -> int:
    """CPU cores that this process may use: its affinity, or what control groups grant it if that is less."""
    cores = len(os.sched_getaffinity(0))
    granted = cpu_limit(root)
    return cores if granted is None else max(1, min(cores, math.floor(granted)))


def cpu_limit(root: Path = _ROOT) -> float | None:
    """How many CPUs control groups grant this process, also in parts; None for no limit."""
    limits = []
    for folder in _folders(root, "cpu"):
        words = _words(folder / "cpu.max") or _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit():
            limits.append(int(words[0]) / int(words[1]))
    return min(limits, default=None)


def memory_limit(root: Path = _ROOT) -> int | None:
    """Bytes of memory that control groups grant this process; None for no limit."""
    return min((limit for limit, _ in _memory(root)), default=None)


def memory_left(root: Path = _ROOT) -> int | None:
    """Bytes that are left of the tightest of these limits, what the kernel can drop counted as free."""
    return min((max(0, limit - used) for limit, used in _memory(root)), default=None)


def _memory(root: Path) -> Iterator[tuple[int, int]]:
    """Each limit and what is used of it."""
    for folder in _folders(root, "memory"):
        limit = _words(folder / "memory.max") or _words(folder / "memory.limit_in_bytes")
        used = _words(folder / "memory.current") or _words(folder / "memory.usage_in_bytes")
        if limit and used and limit[0].isdigit() and used[0].isdigit() and int(limit[0]) < _NO_LIMIT:
            yield int(limit[0]), int(used[0]) - _cached(folder)


def _cached(folder: Path) -> int:
    """Bytes of files that were read and can be dropped."""
    words = _words(folder / "memory.stat")
    rows = dict(zip(words[::2], words[1::2], strict=False))
    return int(rows.get("total_inactive_file", rows.get("inactive_file", "0")))


def _folders(root: Path, controller: str) -> Iterator[Path]:
    """The control groups that this process is in, from its own to the outermost: each may limit it."""
    top = root / "sys/fs/cgroup"
    for line in _lines(root / "proc/self/cgroup"):
        number, controllers, path = line.split(":", 2)
        mounts = [top, top / "unified"] if number == "0" else [top / controllers, top / controller]
        if number != "0" and controller not in controllers.split(","):
            continue
        for mount in mounts:
            # In a container the path may be that of the host, of which only the mount's own group is there.
            own = mount / path.lstrip("/")
            yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(mount) and folder.is_dir())


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _words(path: Path) -> list[str]:
    return [word for line in _lines(path) for word in line.split()]
