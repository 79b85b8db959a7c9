"""Standard output that knows no more than ASCII, or that nobody reads: the verdict stands all the same."""

from __future__ import annotations

import codecs
import io
import os
import sys

_SIGNS = {
    "✓": "+",
    "≈": "~",
    "✗": "x",
    "±": "+-",
    "\N{MULTIPLICATION SIGN}": "x",
    "²": "2",
    "·": ".",
    "…": "...",
    "\N{EN DASH}": "-",
    "—": "-",
    "→": "->",
}


def say_in_any_encoding() -> None:
    """Signs that a stream's encoding lacks become the nearest that it has, and not an error in place of a verdict."""
    codecs.register_error("verify", _nearest)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="verify")


def _nearest(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_SIGNS.get(sign, "?") for sign in text), error.end


def discard_output() -> None:
    """What standard output does not take goes nowhere, rather than into an error when Python ends."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
