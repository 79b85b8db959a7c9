"""What verifying costs: times of the loop bare, recorded, and recorded, gathered and judged."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from verify.bench.budget import Budget
from verify.bench.points import Measurement, Point
from verify.bench.statistics import paired_ratio, spread
from verify.bench.syncs import syncs_in_loop
from verify.bench.tasks import timed_loop
from verify.checks.judging import Evidence, LoopRun, judge
from verify.ranks.local.pool import RankPool
from verify.ranks.plan import Placement
from verify.runner.job import Job
from verify.tasks.stage import Plan
from verify.tasks.trace_loop import trace_loop
from verify.trace.trace import Trace

# Enough for guided and unguided steps. The profile of a whole loop would be large and say no more.
_PROFILED_TIMESTEPS = 8


class Overhead(Measurement):
    """One point: bare and verified runs of each loop in turn, on one pool."""

    def __init__(self, point: Point, placement: Placement, pool: RankPool, budget: Budget) -> None:
        super().__init__(point, placement, pool, budget)
        self._plans = {plan.loop_name: plan for plan in point.job.judged_plans()}
        self._reference: Trace | None = None
        self._seconds: dict[str, dict[str, list[float]]] = {
            name: {"bare": [], "bare_wall": [], "recorded": [], "verified": []} for name in self._plans
        }
        self._syncs: dict[str, Any] = {}

    @property
    def _job(self) -> Job:
        return self.point.job

    @property
    def alternations(self) -> int:
        """Turns in which every loop was timed."""
        return min(len(s["bare"]) for s in self._seconds.values())

    def prepare(self) -> None:
        """Traces the reference once."""
        self._reference = self.run(trace_loop, self._job.plans()[0])[0]

    def turn(self, warm_up: bool) -> None:
        """Times each loop bare and verified. Verified includes moving the traces and judging them."""
        for name, plan in self._plans.items():
            timed = [run(name, plan) for run in self.in_turn((self._bare, self._verified))]
            if not warm_up:
                for what, seconds in (timed[0] | timed[1]).items():
                    self._seconds[name][what].append(seconds)

    def _bare(self, name: str, plan: Plan) -> dict[str, float]:
        began = time.perf_counter()
        timings = self.run(timed_loop, plan, False, False, None, True)
        return {"bare_wall": time.perf_counter() - began, "bare": max(timing.total for timing in timings)}

    def _verified(self, name: str, plan: Plan) -> dict[str, float]:
        began = time.perf_counter()
        traces = self.run(trace_loop, plan)
        judge(self._job.resolved, {name: LoopRun(traces, self._job.kinds()[name])}, Evidence(self._reference))
        return {"verified": time.perf_counter() - began, "recorded": max(trace.seconds for trace in traces)}

    def at_last(self, allowed: Callable[[], bool]) -> None:
        """How often the host waits for the device inside each loop, bare and recorded; on a shorter schedule."""
        if self._job.device != "cuda" or not allowed():
            return
        points = min(_PROFILED_TIMESTEPS, self._job.request.num_timesteps)
        request = replace(self._job.request, num_timesteps=points)
        for name, plan in self._plans.items():
            short: Plan = replace(plan, request=request)
            self._syncs[name] = {"steps": request.schedule.steps} | {
                what: self.run(syncs_in_loop, short, recorded)
                for what, recorded in (("bare", False), ("recorded", True))
            }

    def to_dict(self) -> dict[str, Any]:
        """The JSON form of what is known so far."""
        loops: dict[str, Any] = {}
        for name, s in self._seconds.items():
            if not s["bare"]:
                continue
            loops[name] = {
                "bare_s": spread(s["bare"]),
                "bare_wall_s": spread(s["bare_wall"]),
                "recorded_s": spread(s["recorded"]),
                "verified_s": spread(s["verified"]),
                "added_s": spread([v - b for v, b in zip(s["verified"], s["bare_wall"], strict=True)]),
                "recorded_over_bare": paired_ratio(s["recorded"], s["bare"]),
                "verified_over_bare": paired_ratio(s["verified"], s["bare_wall"]),
            } | ({"syncs": self._syncs[name]} if name in self._syncs else {})
        return {
            **self.setting(),
            "tokens": self._job.request.tokens,
            "notes": list(self.placement.notes),
            "loops": loops,
        }
