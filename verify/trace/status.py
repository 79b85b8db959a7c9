"""Where a rank says what it is doing while a loop runs."""

from __future__ import annotations

from typing import Protocol


class Status(Protocol):
    """Where a recorder says what the rank is doing, for the progress bar and for whoever finds the rank dead."""

    def finished(self, step: int) -> None:
        """``step`` is done."""
        ...

    def activity(self, words: str) -> None:
        """The rank is about to do this."""
        ...

    def collective(self, name: str, number: int, step: int) -> None:
        """The rank is about to call the ``number``-th collective, from 1, of ``step``."""
        ...
