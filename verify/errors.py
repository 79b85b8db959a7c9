"""The two ways a run can end without a judgement."""

from __future__ import annotations

from typing import Any

from verify.text import one_line


class BadInput(Exception):
    """What the user handed over cannot be used; exit status 2.

    The message is one line that names the value, what was expected and the fix.
    """

    def __init__(self, message: str) -> None:
        # Whatever a value or a library's own message holds, what is printed stays one readable line.
        super().__init__(one_line(message))

    @classmethod
    def of(cls, name: str, value: Any, expected: str, fix: str) -> BadInput:
        """Builds the one-line message in the order every bad input is reported in."""
        try:
            shown = repr(value)
        except Exception:  # An int of too many digits, or somebody's own class: the message must come all the same.
            shown = f"<{type(value).__name__} that cannot be shown>"
        if len(shown) > 120:
            shown = shown[:117] + "..."
        return cls(f"{name} is {shown}, expected {expected}; {fix}")


class Unjudged(Exception):
    """The run could not be judged (too few GPUs, a rank died or hung); exit status 3."""
