"""What verifying costs: the bare loop, the recorded one, and recorded, gathered and judged."""

from __future__ import annotations

import time
from typing import Any

from verify.bench.statistics import paired_ratio, spread
from verify.bench.tasks import timed_loop
from verify.checks import LoopRun, judge
from verify.job import Job
from verify.ranks.plan import place
from verify.runner import pool_for
from verify.targets.protocol import REFERENCE
from verify.targets.session import trace_loop


def overhead(job: Job, rounds: int) -> dict[str, Any]:
    """Alternates bare and verified runs of each loop on one pool, after a warm-up of each.

    A verified run lasts until its findings are there: recording, moving the traces and judging them included.
    """
    placement = place(job.ranks, job.device, job.backend)
    pool = pool_for(placement.spec)
    plans = {plan.loop_name: plan for plan in job.plans()}
    reference = pool.run(trace_loop, plans.pop(REFERENCE), timeout=job.timeout)[0]
    results: dict[str, Any] = {}
    for name, plan in plans.items():
        bare, recorded, verified = [], [], []
        for turn in range(rounds + 1):
            began = time.perf_counter()
            pool.run(timed_loop, plan, False, timeout=job.timeout)
            bare_wall = time.perf_counter() - began
            began = time.perf_counter()
            traces = pool.run(trace_loop, plan, timeout=job.timeout)
            judge(job.request, {name: LoopRun(traces, job.kinds()[name])}, reference)
            verified_wall = time.perf_counter() - began
            if turn:  # The first turn warms both up.
                bare.append(bare_wall)
                recorded.append(max(trace.seconds for trace in traces))
                verified.append(verified_wall)
        results[name] = {
            "bare_s": spread(bare),
            "recorded_s": spread(recorded),
            "verified_s": spread(verified),
            "verified_over_bare": paired_ratio(verified, bare),
        }
    return {"notes": list(placement.notes), "loops": results}
