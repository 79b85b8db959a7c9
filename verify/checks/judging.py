"""All checks on the traces of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from verify.checks.cache_frozen import cache_frozen
from verify.checks.collectives import collectives
from verify.checks.environments_agree import environments_agree, with_conditions
from verify.checks.finite import finite
from verify.checks.loops_agree import loops_agree
from verify.checks.matches_reference import matches_reference
from verify.checks.not_vacuous import not_vacuous
from verify.checks.observed import observed
from verify.checks.parallelism_engaged import parallelism_engaged
from verify.checks.ranks_agree import ranks_agree
from verify.checks.schedule_followed import schedule_followed
from verify.checks.sent_as_computed import sent_as_computed
from verify.checks.state_frozen import state_frozen
from verify.expected import ANY, Exchanges, Expected, expected_work
from verify.layout import Layout
from verify.request import DenoiseRequest
from verify.schedule import Schedule
from verify.trace.sensitivity import Sensitivity
from verify.trace.trace import Trace
from verify.verdict import Finding, Verdict


@dataclass(frozen=True)
class LoopRun:
    """One loop as every rank saw it.

    Attributes:
        traces: one a rank, in rank order.
        expect: the loop version whose collectives and branch evaluations it is held to, or ``any``; or what the target
            declares them to be.
        layout: of the ranks; None where the target says none.
    """

    traces: Sequence[Trace]
    expect: str | Exchanges
    layout: Layout | None = None

    @property
    def loop(self) -> str:
        """The loop's name."""
        return self.traces[0].loop

    def expected(self, request: DenoiseRequest, world_size: int) -> Expected | None:
        """What its ranks should do for a resolved request; None where it may do as it likes."""
        if self.expect == ANY:
            return None
        layout = world_size if self.layout is None else self.layout
        equal_noise = all(trace.equal_noise for trace in self.traces)
        return expected_work(self.expect, request.schedule, request.branches, layout, equal_noise)


@dataclass(frozen=True)
class Evidence:
    """What findings rest on besides the traces of the loops.

    Attributes:
        reference: the reference's trace; None where there is none.
        sensitivity: what a change of the network's inputs changes; None where it was not tried.
    """

    reference: Trace | None = None
    sensitivity: Sensitivity | None = None


def judge(request: DenoiseRequest, runs: Mapping[str, LoopRun], evidence: Evidence) -> list[Finding]:
    """Every check on every loop, then the checks across loops; in the order in which a reader should look at them.

    A loop known to follow another schedule than the request's fails ``schedule``; what it does in each step is then
    compared with the schedule that it follows, or one fault would be told as three.
    """
    findings = [finding for run in runs.values() for finding in _of_one(request, run, evidence)]
    traces = {name: run.traces for name, run in runs.items()}
    if len(runs) > 1 and not any(trace.breach for trace in chain(*traces.values())):
        findings.append(guarded("loops_agree", "*", lambda: loops_agree(traces)))
    if runs:
        reference, sensitivity = evidence.reference, evidence.sensitivity
        findings.append(guarded("not_vacuous", "*", lambda: not_vacuous(request, traces, reference, sensitivity)))
    return with_conditions(findings)


def _of_one(request: DenoiseRequest, run: LoopRun, evidence: Evidence) -> list[Finding]:
    traces = run.traces
    followed = request if traces[0].followed is None else request.resolved(traces[0].followed)
    if followed.schedule.skips:
        followed = followed.resolved(_with_skips(followed.schedule, evidence.reference or traces[0]))
    expected, layout = run.expected(followed, len(traces)), run.layout
    # A schedule that is known not to be the request's fails by itself; its sizes would be the same fault once more.
    sizes = () if evidence.sensitivity is None or followed.schedule != request.schedule else evidence.sensitivity.sizes
    checks: dict[str, Callable[[], Finding]] = {
        "environments_agree": lambda: environments_agree(traces),
        "ranks_agree": lambda: ranks_agree(traces, layout),
        "matches_reference": lambda: matches_reference(traces, evidence.reference, layout),
        "schedule": lambda: schedule_followed(traces, request, sizes, evidence.reference),
        "collectives": lambda: collectives(traces, expected, layout),
        "sent_as_computed": lambda: sent_as_computed(traces),
        "parallelism_engaged": lambda: parallelism_engaged(traces, followed, expected),
        "cache_frozen": lambda: cache_frozen(traces, layout),
        "state_frozen": lambda: state_frozen(traces, layout),
        "observed": lambda: observed(traces, layout),
        "finite": lambda: finite(traces),
    }
    broken = next((trace for trace in traces if trace.breach), None)
    if broken is not None:
        # What was recorded ends in the middle: only what does not rest on steps can be judged.
        because = f"rank {broken.rank} broke the loop's contract, so that the record ends there"
        whole = ("observed", "cache_frozen", "state_frozen", "environments_agree")
        return [
            guarded(name, run.loop, check) if name in whole else Finding(name, run.loop, Verdict.UNKNOWN, because)
            for name, check in checks.items()
        ]
    return [guarded(name, run.loop, check) for name, check in checks.items()]


def _with_skips(schedule: Schedule, right: Trace) -> Schedule:
    """The schedule with no evaluation in the steps in which ``right`` made none: there its step cache answered."""
    made = [bool(branches) for branches in right.branches[: schedule.steps]] + [True] * schedule.steps
    evaluations = tuple(schedule.evaluations_of(step) * made[step] for step in range(schedule.steps))
    return replace(schedule, evaluations=evaluations)


def guarded(name: str, loop: str, check: Callable[[], Finding]) -> Finding:
    """What ``check`` finds; an exception of its own makes it unknown and costs no other finding."""
    try:
        return check()
    except Exception as error:
        return Finding(name, loop, Verdict.UNKNOWN, f"the check itself failed: {type(error).__name__}: {error}")


def judge_finished(request: DenoiseRequest, run: LoopRun, world_size: int) -> list[Finding]:
    """What a loop that some rank never finished can still be blamed for, from the traces of those that did.

    Only what fails is told: that the survivors did right says nothing about the loop.
    """
    expected = run.expected(request, world_size)
    if expected is None:
        return []
    findings = [
        finding
        for trace in run.traces
        for finding in (schedule_followed([trace], request), collectives([trace], expected, run.layout))
    ]
    return [finding for finding in findings if finding.verdict is Verdict.FAIL]
