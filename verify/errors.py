"""The two ways a run can end without a judgement."""

from __future__ import annotations

from typing import Any


class BadInput(Exception):
    """What the user handed over cannot be used; exit status 2.

    The message is one line that names the value, what was expected and the fix.
    """

    @classmethod
    def of(cls, name: str, value: Any, expected: str, fix: str) -> BadInput:
        """Builds the one-line message in the order every bad input is reported in."""
        try:
            shown = repr(value)
        except Exception:  # An int of too many digits, or somebody's own class: the message must come all the same.
            shown = f"<{type(value).__name__} that cannot be shown>"
        if len(shown) > 120:
            shown = shown[:117] + "..."
        return cls(" ".join(f"{name} is {shown}, expected {expected}; {fix}".split()))


class Unjudged(Exception):
    """The run could not be judged (too few GPUs, a rank died or hung); exit status 3."""
