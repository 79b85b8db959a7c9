"""Timesteps, step sizes, guided steps, and what each version of the loop must therefore do.

Only this module knows how many steps there are, which of them are guided, and how many collectives and branch
evaluations follow from that. Checks compare traces with it.
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
BROADCAST = "broadcast"
LOOP_KINDS = ("reference", "broadcast", "local", "round_robin")
# The versions in which rank ``i`` evaluates branch ``i``, so that the world size is the number of branches.
ONE_BRANCH_A_RANK = ("broadcast", "local")


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


@dataclass(frozen=True)
class Expected:
    """What one loop must do on each rank, step by step.

    Attributes:
        collectives: for each step, the collectives in order, those before the loop counted to step 0.
        branches: for each rank and step, the branches that rank evaluates, in order.
    """

    collectives: tuple[tuple[str, ...], ...]
    branches: tuple[tuple[tuple[str, ...], ...], ...]

    def total(self, name: str) -> int:
        """How often collective ``name`` occurs in the whole loop, on every rank."""
        return sum(step.count(name) for step in self.collectives)


def expected_work(kind: str, schedule: Schedule, branches: Sequence[str], world_size: int) -> Expected:
    """The collectives and branch evaluations of loop version ``kind``, computed from the schedule.

    ==============  ===================================  =====================================================
    kind            a guided step                        a step outside the interval
    ==============  ===================================  =====================================================
    ``reference``   every branch in turn, alone          gen, alone
    ``broadcast``   own branch, all_gather, broadcast    gen on rank 0 only, broadcast
    ``local``       own branch, all_gather               gen on every rank, nothing sent
    ``round_robin`` branches ``rank``, ``rank + world    gen on every rank, nothing sent
                    size``, ... (gen for a rank without
                    one); an all_gather for each round
    ==============  ===================================  =====================================================

    A step of several evaluations does so several times, one of none not at all.

    Every version but ``reference`` begins with one broadcast of the initial noise. ``gen`` stands for the first branch,
    whatever a target calls it.

    Raises:
        ValueError: ``kind`` is none of these, or it gives each rank one branch and the numbers do not match.
    """
    if kind not in LOOP_KINDS:
        raise ValueError(f"no loop version is called {kind!r}")
    if kind in ONE_BRANCH_A_RANK and world_size != len(branches):
        raise ValueError(f"{kind} gives each rank one branch: {world_size} ranks cannot take {len(branches)} branches")
    rounds = -(-len(branches) // world_size)
    alone = kind == "reference"
    gathers: tuple[str, ...] = () if alone else (ALL_GATHER,) * rounds
    every_step: tuple[str, ...] = (BROADCAST,) if kind == "broadcast" else ()
    first = branches[0]

    def evaluated(rank: int, guided: bool) -> tuple[str, ...]:
        if not guided:
            return (first,) if rank == 0 or kind != "broadcast" else ()
        if alone:
            return tuple(branches)
        return tuple(branches[rank::world_size]) or (first,)

    initial: tuple[str, ...] = () if alone else (BROADCAST,)
    of_each = [(guided, schedule.evaluations_of(step)) for step, guided in enumerate(schedule.guided)]
    return Expected(
        collectives=tuple(
            (initial if step == 0 else ()) + (gathers if guided else ()) * times + every_step
            for step, (guided, times) in enumerate(of_each)
        ),
        branches=tuple(
            tuple(evaluated(rank, guided) * times for guided, times in of_each) for rank in range(world_size)
        ),
    )
