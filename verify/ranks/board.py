"""Where each rank is, readable from outside even after the rank has died."""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass

_RECORD = struct.Struct("<iI48s64s")


@dataclass(frozen=True)
class Place:
    """Where a rank is.

    Attributes:
        step: the last step it finished; -1 before the first.
        marks: how often it has reported in this task.
        task: what it is running, in words.
        activity: what it is doing there: a branch evaluation, a collective.
    """

    step: int = -1
    marks: int = 0
    task: str = ""
    activity: str = ""


class Board:
    """A shared page with one record a rank. Writing costs a microsecond and never touches the device."""

    def __init__(self, descriptor: int, world_size: int) -> None:
        """Maps a file of :meth:`size` bytes, all zero at first."""
        self._page = mmap.mmap(descriptor, self.size(world_size))
        self._world_size = world_size

    @staticmethod
    def size(world_size: int) -> int:
        """Bytes of a board for so many ranks."""
        return _RECORD.size * world_size

    def write(self, rank: int, place: Place) -> None:
        """Sets the record of ``rank``."""
        packed = _RECORD.pack(place.step, place.marks, _bytes(place.task, 48), _bytes(place.activity, 64))
        self._page[rank * _RECORD.size : (rank + 1) * _RECORD.size] = packed

    def read(self) -> list[Place]:
        """Every rank's record. One caught in the middle of being written is part old, part new; never an error."""
        places = []
        for rank in range(self._world_size):
            step, marks, task, activity = _RECORD.unpack_from(self._page, rank * _RECORD.size)
            places.append(Place(step, marks, _text(task), _text(activity)))
        return places

    def close(self) -> None:
        """Unmaps the page."""
        self._page.close()


class Marker:
    """One rank's pen on the board."""

    def __init__(self, board: Board, rank: int) -> None:
        self._board, self._rank, self._marks, self._task = board, rank, 0, ""
        self._step = -1

    def begin(self, task: str) -> None:
        """Starts a task: no step done yet."""
        self._task, self._marks, self._step = task, 0, -1
        self.activity("")

    def finished(self, step: int) -> None:
        """Notes that ``step`` is done."""
        self._step = step
        self.activity("")

    def activity(self, words: str) -> None:
        """Notes what the rank is about to do."""
        self._marks += 1
        self._board.write(self._rank, Place(self._step, self._marks, self._task, words))


def _bytes(text: str, length: int) -> bytes:
    """At most ``length`` bytes, never half a character; surrogates, which no encoding has, as question marks."""
    return text.encode(errors="replace")[:length].decode(errors="ignore").encode()


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode(errors="replace")
