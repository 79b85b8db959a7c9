"""With ``--reference rounding``: every step of every loop repeated, judged, and what is not explained located."""

from __future__ import annotations

import time

from verify.ranks.task_runner import TaskRunner
from verify.rounding.findings import rounding_explains
from verify.rounding.resample import resample, steps_taken
from verify.runner.job import Job
from verify.runner.tracing import Traces
from verify.verdict import Finding


def explain_each_step(
    job: Job, ranks: TaskRunner, deadline: float, traces: Traces, replicas: int
) -> dict[str, Finding]:
    """The finding on each loop of one replica: every step computed anew, on another rank than it came from, and judged.

    The run's probability of a false alarm is shared out equally over its loops and replicas.
    """
    findings = {}
    plans = [plan for plan in job.judged_plans() if plan.loop_name in traces]
    alarm = job.false_alarm / (len(job.judged_plans()) * replicas)
    for plan in plans:
        of_loop = traces[plan.loop_name]
        taken = steps_taken(of_loop)
        results = ranks.run(
            resample,
            plan,
            each=[([step for step in taken if step.check.checker == rank], job.draws) for rank in range(len(of_loop))],
            name=f"each step of {plan.loop_name} under randomised rounding",
            timeout=max(0.1, deadline - time.monotonic()),
        )
        steps = [step for _, done in results for step in done]
        findings[plan.loop_name] = rounding_explains(of_loop, results[0][0], steps, alarm, job.draws)
    return findings
