"""Progress of a long command: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES = 10.0


class ProgressReport:
    """Shows how far each named part of a command is. Use it as a context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: Progress | None = None
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bars = Progress(*columns, console=console, transient=True)
        self._tasks: dict[str, TaskID] = {}
        self._totals: dict[str, int] = {}
        self._began: dict[str, float] = {}
        self._spoke = 0.0

    def __enter__(self) -> ProgressReport:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def start(self, name: str, total: int) -> None:
        """A part begins that has ``total`` units."""
        self._totals[name], self._began[name] = total, time.monotonic()
        self._spoke = time.monotonic()
        if self._bars is not None:
            self._tasks[name] = self._bars.add_task(name.replace("[", r"\["), total=total)

    def update(self, name: str, done: int) -> None:
        """``done`` units of the part are finished."""
        if self._bars is not None:
            self._bars.update(self._tasks[name], completed=done)
        elif time.monotonic() - self._spoke > _SECONDS_BETWEEN_LINES:
            self._spoke = time.monotonic()
            spent = self._spoke - self._began[name]
            left = f", about {spent * (self._totals[name] / done - 1):.0f} s left" if done else ""
            self._say(f"{name}: {done} of {self._totals[name]}{left}")

    def finish(self, name: str) -> None:
        """The part is complete."""
        if self._bars is not None:
            self._bars.update(self._tasks[name], completed=self._totals[name])

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
