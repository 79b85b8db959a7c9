"""With ``--reference rounding``: every step of every loop repeated, judged, and what is not explained located."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from verify.errors import BadInput
from verify.ranks.failure.failure import RankFailure
from verify.ranks.task_runner import TaskRunner
from verify.rounding.culprits import Culprit, first_unexplained
from verify.rounding.findings import rounding_explains
from verify.rounding.operators import REST, sketch_loop, sketch_reference
from verify.rounding.resample import StepTaken, resample, steps_taken
from verify.runner.job import Job
from verify.runner.locate import AFTER_THE_COMBINE, LOCATE_TIMEOUT, Location, operator_location
from verify.runner.tracing import Traces
from verify.tasks.recompute_step import confirm
from verify.tasks.stage import Plan
from verify.verdict import Finding, Verdict


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
        found = rounding_explains(of_loop, results[0][0], steps, alarm, job.draws)
        if found.verdict is Verdict.FAIL:
            found = _located(_confirmed(found, plan, ranks, deadline, taken), job, plan, ranks, deadline, taken)
        findings[plan.loop_name] = found
    return findings


def _confirmed(finding: Finding, plan: Plan, ranks: TaskRunner, deadline: float, taken: Sequence[StepTaken]) -> Finding:
    """A step that is not explained is tried on the reference, which must repeat itself where it takes it alone."""
    step = _at_fault(finding, taken)
    if step is None:
        return finding
    timeout = max(0.1, deadline - time.monotonic())
    (tried,) = ranks.run(confirm, plan, [step.check], name="trying the reference's own step", timeout=timeout)[0]
    if tried.x_t is not None:
        return finding
    summary = f"the reference does not repeat its own step {step.check.step} when it takes it alone: {tried.reason}"
    return replace(finding, verdict=Verdict.UNKNOWN, summary=summary, first_divergence=None)


def _located(
    finding: Finding, job: Job, plan: Plan, ranks: TaskRunner, deadline: float, taken: Sequence[StepTaken]
) -> Finding:
    """Adds the first operator that is not explained: the step is run again on both sides."""
    step = _at_fault(finding, taken)
    if step is None or finding.verdict is not Verdict.FAIL:
        return finding
    number, rank = step.check.step, step.check.ranks[0]
    timeout = min(LOCATE_TIMEOUT, max(0.1, deadline - time.monotonic()))
    try:
        reference = ranks.run(sketch_reference, plan, step.check, job.draws, name="locating", timeout=timeout)[0]
        loop = ranks.run(sketch_loop, plan, number, name=f"locating in {plan.loop_name}", timeout=timeout)
    except (RankFailure, BadInput) as reason:
        return replace(finding, details=(*finding.details, f"not located: {reason}"))
    culprit = first_unexplained([None if own is None else own.taken for own in loop], reference, rank)
    if culprit is None:
        said = "located: no operator that both sides have is beyond rounding by itself: it happens between them"
        return replace(finding, details=(said, *finding.details))
    where = _location(number, culprit)
    told = f"{where}: {culprit.seen:.3g} times what rounding does to it, {culprit.allowed:.3g} would be explained"
    return replace(finding, details=(told, *finding.details), data=finding.data | {"location": where.to_dict()})


def _at_fault(finding: Finding, taken: Sequence[StepTaken]) -> StepTaken | None:
    first = finding.first_divergence
    if first is None or "rounding" not in finding.data:
        return None
    return next((s for s in taken if s.check.step == first.step and first.ranks[1] in s.check.ranks), None)


def _location(step: int, culprit: Culprit) -> Location:
    call = culprit.call
    tensor = AFTER_THE_COMBINE if call.part == REST else call.part
    return operator_location(step, culprit.rank, tensor, call.name, call.module)
