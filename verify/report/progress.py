"""Progress of a long command: bars on a terminal, plain lines elsewhere, there for parts that take long only."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from verify.text import literal

_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_BETWEEN_REFRESHES = 0.1


@dataclass
class _Part:
    total: int
    began: float
    spoke: float
    done: int = 0
    task: TaskID | None = None


class ProgressReport:
    """Shows how far each named part of a command is, and how long it has left. Use it as a context manager.

    It draws when it is told something and has no thread of its own.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._parts: dict[str, _Part] = {}
        self._drawn = clock()
        self._bars: Progress | None = None
        if console.is_terminal:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            self._bars = Progress(*columns, console=console, transient=True, auto_refresh=False, get_time=clock)

    def __enter__(self) -> ProgressReport:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def start(self, name: str, total: int) -> None:
        """A part begins that has ``total`` units."""
        now = self._clock()
        part = self._parts[name] = _Part(total, now, now)
        if self._bars is not None:
            part.task = self._bars.add_task(literal(name, line_breaks=False), total=total)
            self._draw(part, now)

    def update(self, name: str, done: int) -> None:
        """``done`` units of the part are finished."""
        part, now = self._parts[name], self._clock()
        part.done = done
        if self._bars is not None:
            if now - self._drawn >= _SECONDS_BETWEEN_REFRESHES:
                self._draw(part, now)
        elif now - part.spoke >= _SECONDS_BETWEEN_LINES and done < part.total:
            part.spoke = now
            left = f", about {(now - part.began) * (part.total / done - 1):.0f} s left" if done > 0 else ""
            self._say(f"{name}: {done} of {part.total}{left}")

    def finish(self, name: str) -> None:
        """The part is complete."""
        part, now = self._parts[name], self._clock()
        part.done = part.total
        if self._bars is not None:
            self._draw(part, now)
        elif part.spoke > part.began or now - part.began >= _SECONDS_BETWEEN_LINES:
            self._say(f"{name}: {part.total} of {part.total} in {now - part.began:.1f} s")

    def _draw(self, part: _Part, now: float) -> None:
        assert self._bars is not None
        assert part.task is not None
        self._drawn = now
        self._bars.update(part.task, completed=part.done, refresh=True)

    def _say(self, line: str) -> None:
        self._console.print(
            literal(line, line_breaks=False), markup=False, emoji=False, highlight=False, soft_wrap=True
        )
