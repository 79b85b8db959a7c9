"""Every check on the traces of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from verify.checks.cache_frozen import cache_frozen
from verify.checks.collectives import collectives
from verify.checks.environments_agree import environments_agree, with_conditions
from verify.checks.finite import finite
from verify.checks.loops_agree import loops_agree
from verify.checks.matches_reference import matches_reference
from verify.checks.observed import observed
from verify.checks.parallelism_engaged import parallelism_engaged
from verify.checks.ranks_agree import ranks_agree
from verify.checks.schedule_followed import schedule_followed
from verify.request import DenoiseRequest
from verify.schedule import expected_work
from verify.trace.recorder import Trace
from verify.verdict import Finding, Verdict

ANY = "any"


@dataclass(frozen=True)
class LoopRun:
    """One loop as every rank saw it.

    Attributes:
        traces: one a rank, in rank order.
        expect: the loop version whose collectives and branch evaluations it is held to, or ``any``.
    """

    traces: Sequence[Trace]
    expect: str

    @property
    def loop(self) -> str:
        """The loop's name."""
        return self.traces[0].loop


def judge(request: DenoiseRequest, runs: Mapping[str, LoopRun], reference: Trace | None) -> list[Finding]:
    """Every check on every loop, then the checks across loops; in the order in which a reader should look at them.

    A loop known to follow another schedule than the request's fails ``schedule``; what it does in each step is then
    compared with the schedule that it follows, or one fault would be told as three.
    """
    findings = []
    for run in runs.values():
        traces = run.traces
        followed = request if traces[0].followed is None else request.resolved(traces[0].followed)
        expected = None
        if run.expect != ANY:
            expected = expected_work(run.expect, followed.schedule, request.branches, len(traces))
        findings += [
            ranks_agree(traces),
            matches_reference(traces, reference),
            schedule_followed(traces, request),
            collectives(traces, expected),
            parallelism_engaged(traces, followed, expected),
            cache_frozen(traces),
            observed(traces),
            finite(traces),
            environments_agree(traces),
        ]
    if len(runs) > 1:
        findings.append(loops_agree({name: run.traces for name, run in runs.items()}))
    return with_conditions(findings)


def judge_finished(request: DenoiseRequest, run: LoopRun, world_size: int) -> list[Finding]:
    """What a loop that some rank never finished can still be blamed for, from the traces of those that did.

    Only what fails is told: that the survivors did right says nothing about the loop.
    """
    if run.expect == ANY:
        return []
    expected = expected_work(run.expect, request.schedule, request.branches, world_size)
    findings = [
        finding
        for trace in run.traces
        for finding in (schedule_followed([trace], request), collectives([trace], expected))
    ]
    return [finding for finding in findings if finding.verdict is Verdict.FAIL]
