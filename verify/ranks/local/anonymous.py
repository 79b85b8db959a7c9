"""Files without a name, shared by inheritance: whoever is killed, and how, nothing is left on a disk."""

from __future__ import annotations

import os
from pathlib import Path


def path_of(descriptor: int) -> str:
    """A path by which this process can open ``descriptor`` again."""
    return f"/proc/self/fd/{descriptor}"


class AnonymousFile:
    """Memory that has a descriptor. The kernel frees it with the last process that has it open."""

    def __init__(self, name: str, content: bytes = b"") -> None:
        """``name`` shows up in /proc and nowhere else."""
        self.descriptor = os.memfd_create(name)
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

    def clear(self) -> None:
        """Forgets what has been written."""
        os.truncate(self.descriptor, 0)

    def close(self) -> None:
        """Closes this process's descriptor; closing it again does nothing."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
