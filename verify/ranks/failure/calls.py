"""The collectives that a rank has called in its task: how many, and which the last of them were.

Ranks of one group join collectives in the same order: the n-th call of one meets the n-th of every other. Where one has
called more than another, the first gather or sum that the other lacks cannot be over, however far the host has run
on since; a broadcast may be, for its source.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from verify.schedule import ALL_GATHER, ALL_REDUCE, BROADCAST
from verify.text import call_text

# Which collective, which of its step, and the step.
ENTRY = struct.Struct("<III")
NAMES = (ALL_GATHER, BROADCAST, ALL_REDUCE)
# How many calls are kept: the host of an H100 was seen to run seven steps ahead of it. A launched process, which speaks
# twice a second, tells fewer.
KEPT, SAID = 1024, 64


@dataclass(frozen=True)
class Calls:
    """The collectives that passed the recorder; what a loop or target calls beside it is not among them.

    Attributes:
        count: how many.
        last: the last of them, oldest first, as :func:`entry`.
    """

    count: int = 0
    last: bytes = b""

    def name(self, number: int) -> str:
        """Call ``number``, from 1, as in ``all_gather 1 of step 40``; empty if it was not made or is not kept."""
        at = len(self.last) - (self.count - number + 1) * ENTRY.size
        if at < 0 or not 0 < number <= self.count:
            return ""
        kind, of_step, step = ENTRY.unpack_from(self.last, at)
        return call_text(NAMES[kind], of_step, step)

    def said(self) -> list[Any]:
        """What a launched process says of them, in JSON values."""
        return [self.count, self.last[-SAID * ENTRY.size :].hex()]

    @classmethod
    def heard(cls, said: list[Any]) -> Calls:
        """From what :meth:`said` gave."""
        return cls(said[0], bytes.fromhex(said[1]))


NO_CALLS = Calls()


def entry(name: str, number: int, step: int) -> bytes:
    """One call: the ``number``-th collective, from 1, of ``step``."""
    return ENTRY.pack(NAMES.index(name), number, step)
