"""Windows of steps, and what a trace of them weighs."""

from __future__ import annotations

from typing import NamedTuple

from verify.request import DenoiseRequest


class Window(NamedTuple):
    """A run of steps; the last window has no end, since a loop may take more steps than it should."""

    first: int
    end: int | None

    def keeps(self, step: int) -> bool:
        """Whether ``step`` is one of them."""
        return self.first <= step and (self.end is None or step < self.end)

    def count(self, steps: int) -> int:
        """How many of a loop's ``steps`` it keeps."""
        return max(0, (steps if self.end is None else min(steps, self.end)) - self.first)


def windows_of(steps: int, size: int) -> list[Window]:
    """Windows of ``size`` steps that cover ``steps`` of them."""
    starts = range(0, steps, size)
    return [Window(first, None if first == starts[-1] else first + size) for first in starts]


def trace_bytes(request: DenoiseRequest, channels: int, window: int | None = None, element_size: int = 4) -> int:
    """Bytes of ``x_t`` in one rank's trace: after each step kept, where the loop began, and what it returned.

    Args:
        request: its tokens and steps count.
        channels: of a latent token.
        window: the steps kept at a time; None for all of them.
        element_size: bytes of an element: 4 for the float32 that latents are kept in, 8 for a float64 network.
    """
    steps = request.schedule.steps if window is None else min(window, request.schedule.steps)
    return (steps + 2) * request.tokens * channels * element_size
