"""Files without a name, shared by inheritance: whoever is killed, and how, nothing is left on a disk."""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile
from pathlib import Path

from verify.errors import Unjudged


def path_of(descriptor: int) -> str:
    """A path by which this process can open ``descriptor`` again."""
    return f"/proc/self/fd/{descriptor}"


def open_nameless(name: str) -> int:
    """A descriptor of memory; of a file without a name where the kernel or a filter of system calls refuses that.

    Raises:
        Unjudged: there is neither.
    """
    try:
        return os.memfd_create(name)
    except OSError as refused:
        try:
            with tempfile.TemporaryFile() as file:
                return os.dup(file.fileno())
        except OSError as error:
            raise Unjudged(
                f"this system refuses memfd_create ({refused.strerror}) and a temporary file ({error.strerror}); allow "
                "one of them: ranks share memory through it"
            ) from None


class AnonymousFile:
    """Memory that has a descriptor. The kernel frees it with the last process that has it open."""

    def __init__(self, name: str, content: bytes = b"") -> None:
        """``name`` shows up in /proc and nowhere else."""
        self.descriptor = open_nameless(name)
        self._forgotten = 0
        os.truncate(self.descriptor, len(content))
        with open(path_of(self.descriptor), "wb") as file:
            file.write(content)

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return os.fstat(self.descriptor).st_size

    def read(self) -> bytes:
        """All of it."""
        return Path(path_of(self.descriptor)).read_bytes()

    def tail(self, length: int) -> str:
        """The last ``length`` bytes as text."""
        start = max(0, self.size - length)
        return os.pread(self.descriptor, length, start).decode(errors="replace")

    def forget_all_but(self, length: int) -> None:
        """Frees the memory of what was written first: of the last ``length`` bytes and more, all stays."""
        # Not at every line, and by whole pages: between two calls the file may hold twice as much.
        if (size := self.size) > 2 * length + self._forgotten:
            self._forgotten = (size - length) // mmap.PAGESIZE * mmap.PAGESIZE
            _punch_hole(self.descriptor, self._forgotten)

    def close(self) -> None:
        """Closes this process's descriptor; closing it again does nothing."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def _punch_hole(descriptor: int, length: int) -> None:
    """Gives back the memory of the first ``length`` bytes, which then read as zeros."""
    keep_size, punch_hole = 0x01, 0x02  # Of fallocate(2), for whose modes Python has no function.
    ctypes.CDLL(None).fallocate(descriptor, keep_size | punch_hole, ctypes.c_long(0), ctypes.c_long(length))
