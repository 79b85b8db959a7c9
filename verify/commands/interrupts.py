"""Ctrl-C and SIGTERM: the first ends the command in order, later ones do not cut that short."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType

_WATCHED = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Interrupts:
    """What has arrived.

    Attributes:
        received: the signal, if one has come.
    """

    received: signal.Signals | None = None

    @property
    def exit_status(self) -> int:
        """130 after Ctrl-C, 143 after SIGTERM: 128 and the signal's number, as shells have it."""
        return 128 + (self.received or signal.SIGINT)


@contextlib.contextmanager
def interrupts(restore: bool = True, leave: Callable[[int], object] | None = None) -> Iterator[Interrupts]:
    """Within the block the first SIGINT or SIGTERM raises KeyboardInterrupt and all later ones are ignored.

    What follows the first is clean-up, each part of which is bounded in time; SIGKILL ends it at once, and ranks with
    it. Outside the main thread, which alone may handle signals, nothing changes.

    Args:
        restore: whether signals mean what they did before once the block is over. Not so for a process that then ends.
        leave: called with the exit status, instead of the exception, while a module is being imported: native code that
            runs Python as it loads (torch's does) aborts the process where it meets an exception.
    """
    seen = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield seen
        return

    def handle(number: int, frame: FrameType | None) -> None:
        for watched in _WATCHED:
            signal.signal(watched, signal.SIG_IGN)
        seen.received = signal.Signals(number)
        if leave is not None and _is_importing(frame):
            leave(seen.exit_status)
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in _WATCHED}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # A background job of a shell is not to be stopped by Ctrl-C.
            signal.signal(number, handle)
    try:
        yield seen
    finally:
        if restore or seen.received is None:
            for number, handler in before.items():
                signal.signal(number, handler)
        if not restore:
            # All is done. Python takes its own handler down as it ends, and would die of the signal after that.
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
