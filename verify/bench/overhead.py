"""What verifying costs: the bare loop, the recorded one, and recorded, gathered and judged."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from verify.bench.budget import Budget, OutOfTime
from verify.bench.points import Point, run_in_time
from verify.bench.statistics import paired_ratio, spread
from verify.bench.syncs import syncs_in_loop
from verify.bench.tasks import timed_loop
from verify.checks import LoopRun, judge
from verify.job import Job
from verify.ranks.plan import Placement, place
from verify.ranks.pool import RankPool
from verify.runner import Progress, pool_for
from verify.targets.session import Plan, trace_loop
from verify.trace import Trace

# Enough steps to hold guided ones and others; the profile of a whole loop would be large and say no more.
_PROFILED_TIMESTEPS = 8


def measure_overhead(
    points: Sequence[Point],
    budget: Budget | None = None,
    save: Callable[[list[dict[str, Any]]], None] = lambda done: None,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Every point in turn; arguments and errors as :func:`verify.bench.points.measure`."""
    budget = Budget() if budget is None else budget
    done: list[dict[str, Any]] = []
    for number, point in enumerate(points):
        if not budget.left:
            break
        placement = place(point.job.ranks, point.job.device, point.job.backend)
        pool = pool_for(placement.spec)
        measured = _Overhead(point, placement, pool, budget)
        if progress is not None:
            progress.start(point.name, point.alternations + 1)
        share = budget.share(len(points) - number)
        with suppress(OutOfTime):
            longest = 0.0
            measured.reference()
            for turn in range(point.alternations + 1):
                if turn > 1 and not share.allows(longest):
                    break
                began = time.monotonic()
                measured.turn(keep=turn > 0)  # The first warms up.
                longest = max(longest, time.monotonic() - began) if turn else longest
                save([*done, measured.to_dict()])
                if progress is not None:
                    progress.update(point.name, turn + 1)
            if point.job.device == "cuda" and share.allows(longest):
                measured.count_syncs()
        if progress is not None and measured.alternations == point.alternations:
            progress.finish(point.name)
        done.append(measured.to_dict())
        save(done)
        following = [place(p.job.ranks, p.job.device, p.job.backend).spec for p in points[number + 1 : number + 2]]
        if following and following != [placement.spec]:
            pool.stop()  # Its ranks hold a model each; the next ones need the memory.
    return done


class _Overhead:
    """One point: bare and verified runs of each loop in turn, on one pool."""

    def __init__(self, point: Point, placement: Placement, pool: RankPool, budget: Budget) -> None:
        self._point, self._placement, self._pool, self._budget = point, placement, pool, budget
        self._plans = {plan.loop_name: plan for plan in point.job.judged_plans()}
        self._reference: Trace | None = None
        self._seconds: dict[str, dict[str, list[float]]] = {
            name: {"bare": [], "bare_wall": [], "recorded": [], "verified": []} for name in self._plans
        }
        self._syncs: dict[str, Any] = {}

    @property
    def _job(self) -> Job:
        return self._point.job

    @property
    def alternations(self) -> int:
        """Turns in which every loop was timed."""
        return min(len(s["bare"]) for s in self._seconds.values())

    def _run(self, task: Callable[..., Any], *arguments: Any) -> list[Any]:
        return run_in_time(self._pool, self._point, self._budget, task, *arguments)

    def reference(self) -> None:
        """What the loops are judged against; traced once."""
        self._reference = self._run(trace_loop, self._job.plans()[0])[0]

    def turn(self, keep: bool) -> None:
        """Each loop bare, then verified: until its findings are there, with moving the traces and judging them."""
        for name, plan in self._plans.items():
            began = time.perf_counter()
            bare = self._run(timed_loop, plan, False)
            bare_wall = time.perf_counter() - began
            began = time.perf_counter()
            traces = self._run(trace_loop, plan)
            judge(self._job.due, {name: LoopRun(traces, self._job.kinds()[name])}, self._reference)
            verified = time.perf_counter() - began
            if keep:
                kept = self._seconds[name]
                kept["bare"].append(max(timing.total for timing in bare))
                kept["bare_wall"].append(bare_wall)
                kept["recorded"].append(max(trace.seconds for trace in traces))
                kept["verified"].append(verified)

    def count_syncs(self) -> None:
        """How often the host waits for the device inside each loop, bare and recorded; on a shorter schedule."""
        points = min(_PROFILED_TIMESTEPS, self._job.request.num_timesteps)
        request = replace(self._job.request, num_timesteps=points)
        for name, plan in self._plans.items():
            short: Plan = replace(plan, request=request)
            self._syncs[name] = {"steps": request.schedule.steps} | {
                what: self._run(syncs_in_loop, short, recorded)
                for what, recorded in (("bare", False), ("recorded", True))
            }

    def to_dict(self) -> dict[str, Any]:
        """The JSON form of what is known so far."""
        job, r = self._job, self._job.request
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
            "height": r.height,
            "width": r.width,
            "preset": job.options.preset,
            "dtype": job.options.dtype,
            "world_size": job.ranks,
            "backend": self._placement.spec.backend,
            "device": job.device,
            "tokens": r.tokens,
            "steps": r.schedule.steps,
            "guided_steps": r.schedule.guided_steps,
            "alternations": self.alternations,
            "alternations_asked": self._point.alternations,
            "notes": list(self._placement.notes),
            "loops": loops,
        }
