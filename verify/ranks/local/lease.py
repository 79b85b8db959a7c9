"""GPUs are leased through file locks, all or none, so that several controllers share a host without clashing.

The kernel drops a lock when its holder ends, whatever ends it: a killed worker never keeps a GPU. Leases bind the
controllers of one user on one host; controllers of other users, and in other containers, do not see them.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from verify.errors import Unjudged

_POLL = 0.05


def lock_folder() -> Path:
    """Where the locks of this host and user lie: one place, whatever each process takes for its temporary folder.

    Raises:
        Unjudged: it cannot be made, or somebody else has.
    """
    folder = Path("/tmp") / f"verify-gpu-leases-{os.getuid()}"
    return _own(folder)


def _own(folder: Path) -> Path:
    """``folder``, made if it is not there.

    Raises:
        Unjudged: it is no folder of ours.
    """
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise _unusable(folder, error) from None
    if folder.is_symlink() or found.st_uid != os.getuid():
        raise Unjudged(f"GPU leases belong in {folder}, which is a link or another user's; remove it")
    return folder


def _unusable(folder: Path, error: OSError) -> Unjudged:
    return Unjudged(f"GPU leases cannot be kept in {folder}: {error.strerror}; make it a folder that you can write to")


@contextlib.contextmanager
def lease(gpus: Sequence[int], timeout: float, folder: Path | None = None) -> Iterator[None]:
    """Holds every GPU in ``gpus`` (indices) while the block runs.

    Locks are taken in ascending order and all given back if one is not to be had, so no two controllers that want
    overlapping sets wait for each other.

    Raises:
        Unjudged: they were not free together within ``timeout`` seconds, or leases cannot be kept on this host.
    """
    wanted = sorted({_visible_name(gpu) for gpu in gpus})
    if not wanted:
        yield
        return
    home = lock_folder() if folder is None else _own(folder)
    locks = [FileLock(home / f"gpu-{name}.lock") for name in wanted]
    deadline = time.monotonic() + timeout
    try:
        while not _take_all(locks):
            if time.monotonic() > deadline:
                raise Unjudged(
                    f"GPUs {', '.join(wanted)} were not free together within {timeout:g} s: other runs on this host "
                    f"hold leases in {home}; wait for them or ask for fewer GPUs"
                )
            time.sleep(_POLL)
    except OSError as error:
        raise _unusable(home, error) from None
    try:
        yield
    finally:
        for lock in locks:
            lock.release()


def _visible_name(gpu: int) -> str:
    """What the host calls a GPU: controllers that are shown different ones count them differently."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return re.sub(r"[^\w-]", "_", visible[gpu].strip()) if gpu < len(visible) and visible[gpu].strip() else str(gpu)


def _take_all(locks: Sequence[FileLock]) -> bool:
    with contextlib.ExitStack() as taken:
        for lock in locks:
            try:
                lock.acquire(timeout=0)
            except Timeout:
                return False
            taken.callback(lock.release)
        taken.pop_all()
    return True
