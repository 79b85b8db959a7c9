"""GPUs are leased through file locks, all or none, so that several controllers share a host without clashing.

The kernel drops a lock when its holder ends, whatever ends it: a killed worker never keeps a GPU.
"""

from __future__ import annotations

import contextlib
import getpass
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from verify.errors import Unjudged


def lock_folder() -> Path:
    """Where the locks of this host and user lie."""
    folder = Path(tempfile.gettempdir()) / f"verify-gpu-leases-{getpass.getuser()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


@contextlib.contextmanager
def lease(gpus: Sequence[int], timeout: float, folder: Path | None = None) -> Iterator[None]:
    """Holds every GPU in ``gpus`` (indices) while the block runs.

    Locks are taken in ascending order and all given back if one is not to be had, so two controllers that want
    overlapping sets neither deadlock nor starve each other.

    Raises:
        Unjudged: they were not free together within ``timeout`` seconds.
    """
    locks = [FileLock((folder or lock_folder()) / f"gpu-{gpu}.lock") for gpu in sorted(set(gpus))]
    deadline = time.monotonic() + timeout
    while not _take_all(locks):
        if time.monotonic() > deadline:
            raise Unjudged(f"GPUs {sorted(set(gpus))} were not free together within {timeout:g} s: others hold leases")
        time.sleep(0.05)
    try:
        yield
    finally:
        for lock in locks:
            lock.release()


def _take_all(locks: Sequence[FileLock]) -> bool:
    taken = []
    for lock in locks:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            for other in taken:
                other.release()
            return False
        taken.append(lock)
    return True
