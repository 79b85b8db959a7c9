"""How long a benchmark may still take."""

from __future__ import annotations

import math
import time
from collections.abc import Callable


class OutOfTime(Exception):
    """What was being measured did not end before the deadline."""


# A turn may take a little longer than the longest so far.
_MARGIN = 1.1


class Budget:
    """Seconds that are left until a deadline, if there is one."""

    def __init__(self, seconds: float | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._deadline = math.inf if seconds is None else clock() + seconds

    @property
    def left(self) -> float:
        """Seconds; 0 once they are over."""
        return max(0.0, self._deadline - self._clock())

    def share(self, parts: int) -> Budget:
        """An equal share of what is left for the first of ``parts``; what it does not use, the others have."""
        left = self.left
        return Budget(None if left == math.inf else left / parts, self._clock)

    def allows(self, seconds: float) -> bool:
        """Whether something that took ``seconds`` before can be done once more."""
        return self.left > 0 and seconds * _MARGIN <= self.left
