"""After a failed comparison the step in question is run again under probes; what the reference did is kept."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any

from verify.checks.agreement import FINAL, STATE
from verify.errors import BadInput
from verify.layout import Layout
from verify.ranks.failure.failure import RankFailure
from verify.ranks.task_runner import TaskRunner
from verify.runner.job import Job
from verify.runner.locate import LOCATE_TIMEOUT, Location, locate
from verify.runner.locate_laid_out import locate_laid_out
from verify.targets.protocol import REFERENCE
from verify.tasks.probe_step import StepProbe, probe_step
from verify.trace.sensitivity import Sensitivity
from verify.trace.trace import Trace
from verify.verdict import Finding, Verdict

# What a location explains.
_LOCATED = ("ranks_agree", "matches_reference", "loops_agree")


@dataclass(frozen=True)
class References:
    """What the reference did, for jobs that differ in nothing but the loop: it runs once for all of them.

    Attributes:
        traces: one a replica, by target, request, options, ranks and window.
        probes: by these, the replica and the step.
        sensitivities: what a change of the network's inputs changes, one a replica, by target, request, options and
            ranks.
    """

    traces: dict[Any, list[Trace]] = field(default_factory=dict)
    probes: dict[Any, StepProbe] = field(default_factory=dict)
    sensitivities: dict[Any, list[Sensitivity]] = field(default_factory=dict)


def reference_key(job: Job) -> tuple[Any, ...]:
    """What the reference depends on; where ranks go follows from their number, the device and the backend."""
    return job.target, job.request, job.options, job.ranks, job.device, job.backend


def located(job: Job, ranks: TaskRunner, findings: list[Finding], deadline: float, kept: References) -> list[Finding]:
    """Adds to each loop that left the reference where in the step it did: that step is run again, under probes."""
    plans = {plan.loop_name: plan for plan in job.plans()}
    places: dict[str, Location | str] = {}
    spoiling = {finding.loop for finding in findings if finding.name == "state_frozen" and finding.verdict != "pass"}
    for finding in findings:
        first = finding.first_divergence
        if finding.name != "matches_reference" or first is None or first.step is None or first.step < 0:
            continue
        replica = first.replicas[1] if first.replicas else 0
        if first.tensor == FINAL:
            changed = "the latent that the loop returned, which was changed after it was shown"
            places[finding.loop] = Location(first.step, first.ranks[1], changed)
            continue
        if first.tensor.startswith(STATE):  # A probe shows operators, not who holds what.
            places[finding.loop] = Location(first.step, first.ranks[1], first.tensor)
            continue
        key, group = (*reference_key(job), replica, first.step), ranks.groups[replica]

        def probes(loop: str, step: int = first.step, group: TaskRunner = group) -> list[StepProbe]:
            timeout = min(LOCATE_TIMEOUT, max(0.1, deadline - time.monotonic()))
            return group.run(probe_step, plans[loop], step, name=f"locating in {loop}", timeout=timeout)

        try:
            if key not in kept.probes:
                kept.probes[key] = probes(REFERENCE)[0]
            branches = job.resolved.branches
            seen, right = probes(finding.loop), kept.probes[key]
            layout = job.layout or Layout(job.ranks)
            if job.layout is None and not any(probe.summed for probe in seen):
                places[finding.loop] = locate(first.step, first.ranks[1], right, seen, branches)
            else:
                places[finding.loop] = locate_laid_out(first.step, first.ranks[1], right, seen, branches, layout)
        except (RankFailure, BadInput, AssertionError) as reason:
            places[finding.loop] = f"not located: {reason}"
        if finding.loop in spoiling:
            ranks.renew()  # The loop has run again and spoilt the state again.
    return [_with_location(f, places[f.loop]) if f.loop in places and f.name in _LOCATED else f for f in findings]


def _with_location(finding: Finding, where: Location | str) -> Finding:
    if finding.verdict is not Verdict.FAIL:
        return finding
    data = finding.data | ({"location": where.to_dict()} if isinstance(where, Location) else {})
    return replace(finding, details=(str(where), *finding.details), data=data)
