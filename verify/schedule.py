"""Timesteps, step sizes and guided steps.

Only this module knows how many steps there are and which of them are guided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from verify.bits import same_bits

ALL_GATHER = "all_gather"
ALL_REDUCE = "all_reduce"
BROADCAST = "broadcast"


@dataclass(frozen=True, eq=False)
class Schedule:
    """The steps of one request.

    Attributes:
        timesteps: ``t`` at the start of each step, one float per step; they do not rise, and may repeat.
        dts: the positive step sizes, one element per step; NaN where a sampler has none, see :meth:`without_sizes`.
        guided: whether each step lies inside the CFG interval (always False without guidance).
        evaluations: how often each branch is evaluated in each step, where that is not once: 2 for Heun's method, 0
            where a step cache answers in place of the network.
        skips: a step cache decides while running in which steps it answers. The steps in which the reference evaluates
            nothing are then those in which nothing may be evaluated.
        experts: which network each step asks, by name, where there are several.
    """

    timesteps: tuple[float, ...]
    dts: Float[Tensor, " steps"]
    guided: tuple[bool, ...]
    evaluations: tuple[int, ...] = ()
    skips: bool = False
    experts: tuple[str, ...] = ()

    @classmethod
    def of(cls, num_timesteps: int, shift: float, interval: tuple[float, float], has_guidance: bool = True) -> Schedule:
        """Official Bagel's rule (``modeling/bagel/bagel.py``, ``generate_image``).

        ``num_timesteps`` evenly spaced points on [1, 0] are shifted by ``s*t / (1 + (s-1)*t)`` in float32. The terminal
        0 only closes the last step, so there is one step fewer than there are points. A step is guided when
        ``lo < t <= hi``, where ``t`` stays a float32 tensor: PyTorch then rounds the bounds to float32 too. An engine
        that compares host floats disagrees wherever a step falls on a bound. Rounding moves points too: with a shift
        of 0.2 the first lies one place above 1, outside ``(0.4, 1.0]``, here as in Bagel.
        """
        points = torch.linspace(1, 0, num_timesteps, dtype=torch.float32)
        points = shift * points / (1 + (shift - 1) * points)
        starts = points[:-1]
        lo, hi = interval
        inside = (starts > lo) & (starts <= hi)
        return cls(
            timesteps=tuple(starts.tolist()),
            dts=points[:-1] - points[1:],
            guided=tuple(bool(g) and has_guidance for g in inside.tolist()),
        )

    @classmethod
    def without_sizes(cls, timesteps: Sequence[float], guided: Sequence[bool], **others: Any) -> Schedule:
        """A schedule of a sampler whose steps have no size, as those of DDPM; a loop that reads a size gets NaN."""
        sizes = torch.full((len(timesteps),), float("nan"))
        return cls(tuple(map(float, timesteps)), sizes, tuple(guided), **others)

    @property
    def has_sizes(self) -> bool:
        """Whether its steps have sizes."""
        return not bool(self.dts.isnan().all())

    def evaluations_of(self, step: int) -> int:
        """How often each branch is evaluated in ``step``."""
        return self.evaluations[step] if step < len(self.evaluations) else 1

    @property
    def steps(self) -> int:
        """Steps in the loop."""
        return len(self.timesteps)

    @property
    def guided_steps(self) -> int:
        """Steps at which the branches are gathered and combined."""
        return sum(self.guided)

    def __eq__(self, other: object) -> bool:
        """Whether every byte is the same, wherever the step sizes lie."""
        if not isinstance(other, Schedule):
            return NotImplemented
        return self._plain == other._plain and same_bits(self.dts.cpu(), other.dts.cpu())

    def __hash__(self) -> int:
        return hash(self._plain)

    @property
    def _plain(self) -> tuple[Any, ...]:
        return self.timesteps, self.guided, self.evaluations, self.skips, self.experts

    def to(self, device: torch.device) -> Schedule:
        """The same schedule with ``dts`` on ``device``."""
        return replace(self, dts=self.dts.to(device))

    def of_step(self, step: int) -> Schedule:
        """The schedule of that step alone."""
        alone = slice(step, step + 1)
        return Schedule(
            self.timesteps[alone],
            self.dts[alone],
            self.guided[alone],
            self.evaluations[alone],
            self.skips,
            self.experts[alone],
        )
