"""Where each rank is, readable from outside even after the rank has died."""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass

from verify.ranks.failure.calls import ENTRY, KEPT, NO_CALLS, Calls, entry
from verify.text import call_text

_RECORD = struct.Struct("<iI48s64sI")
# A rank's record, and after it the ring of its last collectives.
_SLOT = _RECORD.size + KEPT * ENTRY.size


@dataclass(frozen=True)
class RankStatus:
    """Where a rank is.

    Attributes:
        step: the last step it finished; -1 before the first.
        marks: how often it has reported in this task.
        task: what it is running, in words.
        activity: what it is doing there: a branch evaluation, a collective.
        calls: the collectives that it has called in this task.
    """

    step: int = -1
    marks: int = 0
    task: str = ""
    activity: str = ""
    calls: Calls = NO_CALLS


class StatusPage:
    """Shared memory with one record per rank, and a ring buffer of its last collectives.

    Writing takes a microsecond or two and never touches the device.
    """

    def __init__(self, descriptor: int, world_size: int) -> None:
        """Maps a file of :meth:`size` bytes, all zero at first."""
        self._page = mmap.mmap(descriptor, self.size(world_size))
        self._world_size = world_size

    @staticmethod
    def size(world_size: int) -> int:
        """Bytes of a page for so many ranks."""
        return _SLOT * world_size

    def write(self, rank: int, status: RankStatus) -> None:
        """Sets the record of ``rank``; of its calls the count alone, the rest is what :meth:`note` wrote."""
        self.record(rank, status.step, status.marks, _bytes(status.task, 48), status.activity, status.calls.count)

    def record(self, rank: int, step: int, marks: int, task: bytes, activity: str, called: int) -> None:
        """As :meth:`write`, for who writes often."""
        at = rank * _SLOT
        self._page[at : at + _RECORD.size] = _RECORD.pack(step, marks, task, _bytes(activity, 64), called)

    def note(self, rank: int, number: int, call: bytes) -> None:
        """Keeps call ``number``, from 1, of ``rank`` in its ring."""
        at = rank * _SLOT + _RECORD.size + (number - 1) % KEPT * ENTRY.size
        self._page[at : at + ENTRY.size] = call

    def read(self) -> list[RankStatus]:
        """Every rank's record. One caught in the middle of being written is part old, part new; never an error."""
        found = []
        for rank in range(self._world_size):
            slot = self._page[rank * _SLOT : (rank + 1) * _SLOT]
            step, marks, task, activity, count = _RECORD.unpack_from(slot)
            oldest = _RECORD.size + (count % KEPT * ENTRY.size if count > KEPT else 0)
            last = slot[oldest:] + slot[_RECORD.size : oldest]
            calls = Calls(count, last[: min(count, KEPT) * ENTRY.size])
            found.append(RankStatus(step, marks, _text(task), _text(activity), calls))
        return found

    def close(self) -> None:
        """Unmaps the pages."""
        self._page.close()


class StatusWriter:
    """Writes one rank's record."""

    def __init__(self, page: StatusPage, rank: int) -> None:
        self._page, self._rank, self._marks, self._task = page, rank, 0, b""
        self._step, self._called = -1, 0

    def begin(self, task: str) -> None:
        """Starts a task: no step done yet."""
        self._task, self._marks, self._step, self._called = _bytes(task, 48), 0, -1, 0
        self.activity("")

    def finished(self, step: int) -> None:
        """Notes that ``step`` is done."""
        self._step = step
        self.activity("")

    def activity(self, words: str) -> None:
        """Notes what the rank is about to do."""
        self._marks += 1
        self._page.record(self._rank, self._step, self._marks, self._task, words, self._called)

    def collective(self, name: str, number: int, step: int) -> None:
        """Notes that the rank is about to call the ``number``-th collective, from 1, of ``step``."""
        self._called += 1
        # The count is written after what it counts.
        self._page.note(self._rank, self._called, entry(name, number, step))
        self.activity(call_text(name, number, step))


def _bytes(text: str, length: int) -> bytes:
    """At most ``length`` bytes, never half a character; surrogates, which no encoding has, as question marks."""
    raw = text.encode(errors="replace")
    return raw if len(raw) <= length else raw[:length].decode(errors="ignore").encode()


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode(errors="replace")
