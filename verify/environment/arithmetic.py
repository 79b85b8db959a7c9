"""How this thread's processor rounds and whether it keeps subnormal numbers: seen by computing, put right by asking.

Python's own floats show it: they are computed by the same unit, under the same control register, as a CPU tensor.
"""

from __future__ import annotations

import contextlib
import ctypes
import struct
from functools import lru_cache

import torch
from torch import Tensor

# Names, not constants: the compiler would fold them, in its own arithmetic.
_one, _tiny, _least, _least_normal = 1.0, 2.0**-60, 2.0**-1074, 2.0**-1022

NEAREST = "to nearest"
# FE_TONEAREST of every C library's fenv.h.
_TO_NEAREST = 0


def rounding() -> str:
    """Which of the four rounding modes is on in this thread."""
    if _one + _tiny > _one:
        return "up"
    if _one - _tiny == _one:
        return NEAREST
    return "down" if -_one - _tiny < -_one else "towards zero"


def round_as(mode: str) -> None:
    """Puts rounding to nearest back; no other mode is ever wanted."""
    if mode == NEAREST:
        with contextlib.suppress(OSError, AttributeError):  # A C library without it: the next look will tell.
            ctypes.CDLL(None).fesetround(_TO_NEAREST)


def flushes_subnormal() -> bool:
    """Whether this thread takes subnormal numbers for zero, or makes zeros of them."""
    return _least * _one == 0.0 or _least_normal * 0.5 == 0.0


def threads_flush_or_round() -> str:
    """The same of the threads that share a large operator: some may have been started under another mode.

    Tens of microseconds, and more where threads wait for a core: for the beginning and the end of a loop only.
    """
    count = torch.get_num_threads()
    if count < 2:
        return "one thread"
    as_usual = bytes((_inputs(count) * _FACTOR).numpy().data) == _PRODUCTS * (count * _GRAIN // 2)
    return "as usual" if as_usual else "some flush subnormal numbers, or do not round to nearest"


# PyTorch gives each thread at least this many elements of an elementwise operator.
_GRAIN = 32768
# The first product is the least subnormal unless it is flushed or rounded down; the second is 1 unless rounded up.
_PAIR, _FACTOR = (2.0**-149, 1.0 + 2.0**-23), 1.0 - 2.0**-24
_PRODUCTS = struct.pack("2f", 2.0**-149, 1.0)


@lru_cache(maxsize=2)
def _inputs(count: int) -> Tensor:
    pair = torch.tensor(_PAIR, dtype=torch.float32, device="cpu")
    return pair.repeat(count * _GRAIN // 2)
