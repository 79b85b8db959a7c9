"""The benchmark: versions of the loop in turn, on one pool, over several sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np

from verify.bench.statistics import paired_ratio, sentence, spread
from verify.bench.stopwatch import FORWARD
from verify.bench.tasks import Timing, forward_against_ceiling, timed_loop
from verify.job import Job
from verify.ranks.plan import place
from verify.runner import pool_for
from verify.schedule import ALL_GATHER, BROADCAST
from verify.targets.protocol import REFERENCE

_CEILING_ROUNDS = 5


def measure_point(job: Job, alternations: int, tick: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Times every loop of ``job`` and the reference, in turn, ``alternations`` times after one warm-up turn.

    Returns:
        A JSON object: sizes, seconds of each loop split by part, ratios between loops, the limit and a sentence.
    """
    placement = place(job.ranks, job.device, job.backend)
    pool = pool_for(placement.spec)
    plans = {plan.loop_name: plan for plan in job.plans()}
    timings: dict[str, list[list[Timing]]] = {name: [] for name in plans}
    for turn in range(alternations + 1):
        for name, plan in plans.items():
            results = pool.run(timed_loop, plan, True, name=f"bench {name}", timeout=job.timeout)
            if turn:
                timings[name].append([timing for timing in results if timing is not None])
            tick()
    ceiling = pool.run(forward_against_ceiling, plans[REFERENCE], _CEILING_ROUNDS, timeout=job.timeout)[0]
    loops = {name: _loop_summary(turns, job.request.schedule.steps) for name, turns in timings.items()}
    seconds = {name: [max(t.total for t in turn) for turn in turns] for name, turns in timings.items()}
    for name, summary in loops.items():
        summary |= _limit(job, name, summary, ceiling)
    pairs = list(combinations([name for name in plans if name != REFERENCE], 2))
    ratios = {f"{slower}/{faster}": paired_ratio(seconds[slower], seconds[faster]) for slower, faster in pairs}
    return {
        "height": job.request.height,
        "width": job.request.width,
        "preset": job.options.preset,
        "dtype": job.options.dtype,
        "world_size": job.ranks,
        "backend": placement.spec.backend,
        "device": job.device,
        "cfg_interval": list(job.request.cfg_interval),
        "steps": job.request.schedule.steps,
        "guided_steps": job.request.schedule.guided_steps,
        "alternations": alternations,
        "notes": list(placement.notes),
        "forward": ceiling,
        "loops": loops,
        "ratios": ratios,
        "sentences": [sentence(ratios[f"{slower}/{faster}"], faster, slower) for slower, faster in pairs],
    }


def measure(jobs: Sequence[Job], alternations: int, tick: Callable[[], None]) -> list[dict[str, Any]]:
    """Every point in turn."""
    return [measure_point(job, alternations, tick) for job in jobs]


def points(base: Job, sides: Sequence[int]) -> list[Job]:
    """One job an image size, in pixels a side."""
    return [replace(base, request=replace(base.request, height=side, width=side)) for side in sides]


def _loop_summary(turns: Sequence[Sequence[Timing]], steps: int) -> dict[str, Any]:
    """Medians over the turns of each part on each rank.

    A collective ends on no rank before the last has arrived, so the shortest of the ranks' spans is its own cost and
    what a rank spent beyond it is idleness.
    """
    ranks = len(turns[0])
    parts: dict[str, list[list[float]]] = {name: [] for name in (FORWARD, ALL_GATHER, BROADCAST, "idle", "rest")}
    for turn in turns:
        collectives = {name: np.array([timing.spans[name] for timing in turn]) for name in (ALL_GATHER, BROADCAST)}
        cost = {name: spans.min(axis=0).sum() if spans.size else 0.0 for name, spans in collectives.items()}
        for name, value in cost.items():
            parts[name].append([value] * ranks)
        waited = sum(spans.sum(axis=1) - cost[name] for name, spans in collectives.items() if spans.size)
        forward = np.array([sum(timing.spans[FORWARD]) for timing in turn])
        idle = np.broadcast_to(waited, (ranks,))
        total = np.array([timing.total for timing in turn])
        parts[FORWARD].append(list(forward))
        parts["idle"].append(list(idle))
        parts["rest"].append(list(total - forward - idle - sum(cost.values())))
    totals = [max(timing.total for timing in turn) for turn in turns]
    return {
        "seconds": spread(totals),
        "parts": {name: [float(v) for v in np.median(np.array(values), axis=0)] for name, values in parts.items()},
        "broadcast_share_of_step": float(np.median([v[0] for v in parts[BROADCAST]]) / np.median(totals)),
        "step_s": float(np.median(totals) / steps),
    }


def _limit(job: Job, name: str, summary: dict[str, Any], ceiling: dict[str, Any]) -> dict[str, Any]:
    """The least a loop can take: the forward passes it makes one after another, at the rate of a large product."""
    schedule, branches = job.request.schedule, len(job.request.branches)
    rounds = branches if name == REFERENCE else -(-branches // job.ranks)
    in_turn = schedule.guided_steps * rounds + (schedule.steps - schedule.guided_steps)
    limit = in_turn * ceiling["flops"] / ceiling["matmul_flops_per_s"] + summary["parts"][ALL_GATHER][0]
    return {"limit_s": limit, "over_limit": summary["seconds"]["p50"] / limit}
