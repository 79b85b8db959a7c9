"""The benchmark at one point: versions of the loop in turn, on one pool."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from verify.bench.budget import Budget
from verify.bench.points import Measurement, Point
from verify.bench.summary import GRAPH, summarise
from verify.bench.tasks import Timing, forward_against_ceiling, prepare_point, timed_loop
from verify.ranks.local.pool import RankPool
from verify.ranks.plan import Placement
from verify.targets.protocol import REFERENCE
from verify.tasks.stage import Plan

_CEILING_ROUNDS = 3
_REFERENCE_RUNS = 2
_WARM_UP_STEPS = 5


class Comparison(Measurement):
    """One point: every loop, eager and if asked for with CUDA graphs, and the reference alone."""

    def __init__(self, point: Point, placement: Placement, pool: RankPool, budget: Budget) -> None:
        super().__init__(point, placement, pool, budget)
        self._reference, *self._plans = point.job.plans()
        self._prepared: dict[str, float] = {}
        self._graph = False
        self._graph_fault = ""
        self._variants: list[tuple[Plan, bool]] = []
        self._timings: dict[str, list[list[Timing]]] = {}
        self._forward: dict[str, Any] | None = None

    @property
    def alternations(self) -> int:
        """Turns in which every loop was timed."""
        return min((len(turns) for name, turns in self._timings.items() if name != REFERENCE), default=0)

    def prepare(self) -> None:
        """Makes every rank ready, times that, and finds out whether it can replay CUDA graphs."""
        ranks = self.run(prepare_point, self._reference, self.point.graph)
        self._prepared = {key: max(rank[key] for rank in ranks) for key in ("seconds", "graph_s") if key in ranks[0]}
        self._graph_fault = next((rank["graph_fault"] for rank in ranks if rank.get("graph_fault")), "")
        self._graph = self.point.graph and not self._graph_fault
        ways = (False, True) if self._graph else (False,)
        self._variants = [(plan, replayed) for replayed in ways for plan in self._plans]
        self._timings = {_name(plan, replayed): [] for plan, replayed in self._variants}

    def turn(self, warm_up: bool) -> None:
        """Times each loop once. A warm-up takes only a few steps, in which kernels are loaded and chosen."""
        steps = _WARM_UP_STEPS if warm_up else None
        timed = {
            _name(plan, replayed): self.run(timed_loop, plan, True, replayed, steps)
            for plan, replayed in self.in_turn(self._variants)
        }
        if not warm_up:
            for name, timings in timed.items():
                self._timings[name].append(timings)

    def after_first(self) -> None:
        """Compares a forward pass with what the device could do."""
        self._forward = self.run(forward_against_ceiling, self._reference, _CEILING_ROUNDS, self._graph)[0]

    def at_last(self, allowed: Callable[[], bool]) -> None:
        """Times the reference, which only rank 0 runs."""
        for _ in range(_REFERENCE_RUNS):
            if allowed():
                alone = [timing for timing in self.run(timed_loop, self._reference, True) if timing is not None]
                self._timings.setdefault(REFERENCE, []).append(alone)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        job, spec = self.point.job, self.placement.spec
        return {
            **self.setting(),
            "devices": list(spec.devices),
            "branches": list(job.request.branches),
            "cfg_interval": list(job.request.cfg_interval),
            "num_timesteps": job.request.num_timesteps,
            "notes": [*self.placement.notes, *([f"CUDA graphs: {self._graph_fault}"] if self._graph_fault else [])],
            "prepare": self._prepared,
            "forward": self._forward,
        } | summarise(
            # The reference first, as in every table.
            {name: self._timings[name] for name in sorted(self._timings, key=lambda name: name != REFERENCE)},
            job.kinds() | {REFERENCE: REFERENCE},
            job.request.schedule,
            job.request.branches,
            spec.devices,
            self._forward,
        )


def _name(plan: Plan, replayed: bool) -> str:
    return plan.loop_name + GRAPH * replayed
