"""Which asynchronous exchanges were never waited for: what they bring may not be there yet when it is read."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch

T = TypeVar("T")

_WORK: Any = torch._C._distributed_c10d.Work
# What a program may do to a handle so that it knows the exchange to be over, or has its stream wait.
_WAITS = ("wait", "synchronize", "block_current_stream", "get_future", "get_future_result", "result", "is_completed")
_TORCH = os.path.dirname(torch.__file__) + os.sep
_API = "distributed_c10d.py"
_AT_ONCE = "batch_isend_irecv"


class Handles:
    """The handles that Python was given and has not waited for, each with what it stands for."""

    def __init__(self) -> None:
        self._open: dict[int, tuple[Any, Any]] = {}

    def watch(self) -> None:
        """From now on waits are seen; the methods that see them stay in place."""
        for name in _WAITS:
            if hasattr(_WORK, name):
                setattr(_WORK, name, self._noted(name, getattr(_WORK, name)))

    def forget(self) -> None:
        """Nobody listens any more."""
        self._open.clear()

    def begun(self, exchange: object, name: str, is_asynchronous: bool, result: Any) -> None:
        """An operator has returned ``result``: its handle is open where a Python program is given it."""
        if not _is_handed_out(sys._getframe(2), name, is_asynchronous):
            return
        last = result[-1] if isinstance(result, (tuple, list)) else result
        try:
            work = _WORK.unbox(last)
        except (RuntimeError, TypeError, ValueError):  # No handle: an operator that returns tensors alone.
            return
        # A program is given this very object: Python knows each handle once. Kept, so that its number stays its own.
        self._open[id(work)] = exchange, work

    def is_open(self, exchange: object) -> bool:
        """Whether nobody has waited for it."""
        return any(each is exchange for each, _ in self._open.values())

    def _noted(self, name: str, method: Callable[..., T]) -> Callable[..., T]:
        @wraps(method)
        def noted(work: Any, *arguments: Any, **more: Any) -> T:
            found = method(work, *arguments, **more)
            if name != "is_completed" or found:
                self._open.pop(id(work), None)
            return found

        return noted


def _is_handed_out(frame: Any, name: str, is_asynchronous: bool) -> bool:
    """Whether the caller of an operator gets a handle to wait for.

    A functional collective's handle stays with PyTorch, which waits when the result is first used; so does that of each
    part of a batch.
    """
    file = frame.f_code.co_filename
    if file.startswith(_TORCH) and not file.endswith(_API):
        return False
    if name not in ("send", "recv"):
        return is_asynchronous
    if frame.f_code.co_name in ("send", "recv"):
        return False
    for _ in range(8):
        frame = frame.f_back
        if frame is None or frame.f_code.co_name == _AT_ONCE:
            return frame is None
    return True
