"""Progress on a terminal and in a log, by a clock of its own."""

from __future__ import annotations

import io
import threading

import pytest
from rich.console import Console

from verify.report.progress import ProgressReport


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def in_a_log() -> tuple[io.StringIO, Clock, ProgressReport]:
    file, clock = io.StringIO(), Clock()
    return file, clock, ProgressReport(Console(file=file, width=80, force_terminal=False, _environ={}), clock)


def on_a_terminal() -> tuple[io.StringIO, Clock, ProgressReport]:
    file, clock = io.StringIO(), Clock()
    console = Console(file=file, width=80, force_terminal=True, _environ={"TERM": "xterm"})
    return file, clock, ProgressReport(console, clock)


def test_a_log_gets_few_lines_and_one_at_the_end() -> None:
    file, clock, progress = in_a_log()
    with progress:
        progress.start("local", 50)
        for step in range(50):
            clock.now += 0.5
            progress.update("local", step + 1)
        progress.finish("local")
    assert file.getvalue().splitlines() == [
        "local: 20 of 50, about 15 s left",
        "local: 40 of 50, about 5 s left",
        "local: 50 of 50 in 25.0 s",
    ]


def test_a_log_says_nothing_of_time_before_the_first_step() -> None:
    file, clock, progress = in_a_log()
    progress.start("local", 49)
    clock.now += 30.0
    progress.update("local", 0)
    assert file.getvalue().splitlines() == ["local: 0 of 49"]


def test_a_log_gets_nothing_from_what_is_soon_over() -> None:
    """What a short command has to say, a refusal in one line say, stands alone."""
    file, clock, progress = in_a_log()
    with progress:
        progress.start("local", 49)
        clock.now += 9.0
        progress.update("local", 40)
        progress.finish("local")
    assert file.getvalue() == ""


def test_a_log_holds_no_control_codes() -> None:
    file, clock, progress = in_a_log()
    with progress:
        progress.start("[red]a\x1b[1m\n", 2)
        clock.now += 60.0
        progress.update("[red]a\x1b[1m\n", 1)
    assert file.getvalue() == "[red]a\\x1b[1m\\n: 1 of 2, about 60 s left\n"


def test_a_terminal_shows_a_bar_and_the_time_left() -> None:
    file, clock, progress = on_a_terminal()
    with progress:
        progress.start("[red]local[/]", 40)
        for step in range(20):
            clock.now += 1.0
            progress.update("[red]local[/]", step + 1)
        drawn = file.getvalue()
        progress.finish("[red]local[/]")
    assert "[red]local[/]" in drawn
    assert "20/40" in drawn
    assert "0:00:20" in drawn
    assert "40/40" in file.getvalue()


def test_a_terminal_is_not_drawn_on_more_often_than_can_be_read() -> None:
    file, clock, progress = on_a_terminal()
    with progress:
        progress.start("local", 10_000)
        before = len(file.getvalue())
        for step in range(1000):
            clock.now += 1e-5
            progress.update("local", step)
        assert len(file.getvalue()) == before


def test_it_starts_no_thread() -> None:
    before = threading.active_count()
    _, _, progress = on_a_terminal()
    with progress:
        progress.start("local", 3)
        assert threading.active_count() == before


def test_the_terminal_is_given_back_when_a_run_breaks() -> None:
    file, _, progress = on_a_terminal()

    def broken_run() -> None:
        with progress:
            progress.start("local", 3)
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        broken_run()
    hidden, shown = "\x1b[?25l", "\x1b[?25h"
    assert file.getvalue().rindex(shown) > file.getvalue().rindex(hidden)


def test_parts_follow_each_other() -> None:
    file, clock, progress = in_a_log()
    with progress:
        for name in ("broadcast", "local"):
            progress.start(name, 3)
            clock.now += 11.0
            progress.finish(name)
    assert file.getvalue().splitlines() == ["broadcast: 3 of 3 in 11.0 s", "local: 3 of 3 in 11.0 s"]
