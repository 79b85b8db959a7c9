"""Whose handles are watched: those that a program is given."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from verify.trace.handles import _is_handed_out

TORCH = torch.__path__[0]
API = f"{TORCH}/distributed/distributed_c10d.py"


def frame(file: str, name: str, *callers: str) -> Any:
    above: Any = None
    for caller in reversed(callers):
        above = SimpleNamespace(f_code=SimpleNamespace(co_filename=API, co_name=caller), f_back=above)
    return SimpleNamespace(f_code=SimpleNamespace(co_filename=file, co_name=name), f_back=above)


@pytest.mark.parametrize(
    ("caller", "exchange", "asynchronous", "handed"),
    [
        (frame(API, "all_gather"), "all_gather", True, True),
        (frame(API, "all_gather"), "all_gather", False, False),
        (frame("engine.py", "step"), "all_reduce", True, True),
        (frame(f"{TORCH}/_ops.py", "__call__"), "all_gather", True, False),
        (frame(API, "isend"), "send", False, True),
        (frame(API, "send"), "send", False, False),
        (frame(API, "recv"), "recv", False, False),
        (frame(API, "irecv", "batch_isend_irecv"), "recv", False, False),
        (frame(API, "irecv", "wrapper", "loop"), "recv", False, True),
    ],
)
def test_who_is_given_a_handle(caller: Any, exchange: str, asynchronous: bool, handed: bool) -> None:
    assert _is_handed_out(caller, exchange, asynchronous) is handed
