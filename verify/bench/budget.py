"""How long a benchmark may still take."""

from __future__ import annotations

import math
import time
from collections.abc import Callable


class OutOfTime(Exception):
    """A measurement did not end before the deadline."""


# The next turn may take a little longer than the longest so far.
_MARGIN = 1.1


class Budget:
    """Seconds that are left until a deadline, if there is one."""

    def __init__(self, seconds: float | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._deadline = math.inf if seconds is None else clock() + seconds

    @property
    def left(self) -> float:
        """Seconds until the deadline; 0 after it."""
        return max(0.0, self._deadline - self._clock())

    def share(self, parts: int) -> Budget:
        """An equal share of what is left, for the first of ``parts``. What it does not use is left to the others."""
        left = self.left
        return Budget(None if left == math.inf else left / parts, self._clock)

    def allows(self, seconds: float) -> bool:
        """Whether there is time to do again what took ``seconds`` before."""
        return self.left > 0 and seconds * _MARGIN <= self.left
