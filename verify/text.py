"""Shows text that users wrote without letting it act on a terminal, and names collectives in words."""

from __future__ import annotations

import re

# A user's name may be as long as a file, but a line must be readable.
_LONGEST_LINE = 1000
_CALL = re.compile(r"\w+ (\d+) of step (\d+)")


def literal(text: str, line_breaks: bool = True) -> str:
    """``text`` as it may be shown anywhere: characters that a terminal acts on or hides are written as escapes.

    Loops, files and the output of ranks are named and written by users, and may hold any character.
    """
    kept = "\n\t" if line_breaks else ""
    return "".join(c if c.isprintable() or c in kept else c.encode("unicode_escape").decode("ascii") for c in text)


def one_line(text: str) -> str:
    """``text`` literally, in one line of at most 1000 characters. The middle of a longer text is left out."""
    line = literal(" ".join(text.split()), line_breaks=False)
    half = _LONGEST_LINE // 2 - 2
    return line if len(line) <= _LONGEST_LINE else f"{line[:half]}...{line[-half:]}"


def call_text(name: str, number: int, step: int) -> str:
    """``all_gather 1 of step 40``: the ``number``-th collective, from 1, that a rank calls in ``step``."""
    return f"{name} {number} of step {step}"


def place_of_call(text: str) -> tuple[int, int] | None:
    """The step and the number in a text of :func:`call_text`; None for any other text."""
    found = _CALL.fullmatch(text)
    return None if found is None else (int(found[2]), int(found[1]))
