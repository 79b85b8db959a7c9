"""The main job: trace every loop on every rank, judge the traces, say what was found."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from verify.checks import LoopRun, judge, judge_finished
from verify.checks.each_step import each_step
from verify.errors import BadInput, Unjudged
from verify.job import INDUCTIVE, Job
from verify.locate import Location, locate
from verify.ranks.board import Place
from verify.ranks.failure import RankFailure
from verify.ranks.plan import Placement, place
from verify.ranks.pool import PoolSpec, RankPool, Watcher
from verify.report.document import RunReport
from verify.request import DenoiseRequest
from verify.targets.finding import find_target
from verify.targets.probe import StepProbe, probe_step
from verify.targets.protocol import REFERENCE, ModelOptions, Target, explained
from verify.targets.session import Plan, trace_loop
from verify.targets.stepwise import recompute, share_out
from verify.trace import Trace
from verify.verdict import Finding, Verdict, merge

_LOCATE_TIMEOUT = 120.0
# What a location explains.
_LOCATED = ("ranks_agree", "matches_reference", "loops_agree")


class Progress(Protocol):
    """Whoever wants to follow a run: :class:`verify.report.progress.ProgressReport`."""

    def start(self, name: str, total: int) -> None:
        """A loop starts; it has ``total`` steps."""
        ...

    def update(self, name: str, done: int) -> None:
        """The slowest rank has finished ``done`` steps."""
        ...

    def finish(self, name: str) -> None:
        """The loop has ended."""
        ...


_pools: dict[PoolSpec, RankPool] = {}


def pool_for(spec: PoolSpec) -> RankPool:
    """The pool with these ranks, kept for the whole life of this process."""
    if spec not in _pools:
        _pools[spec] = RankPool(spec)
    return _pools[spec]


@dataclass(frozen=True)
class References:
    """What the reference did, for jobs that differ in nothing but the loop: it runs once for all of them.

    Attributes:
        traces: by target, request, options and ranks.
        probes: by these and the step.
    """

    traces: dict[Any, Trace] = field(default_factory=dict)
    probes: dict[Any, StepProbe] = field(default_factory=dict)


def run_job(job: Job, progress: Progress | None = None, kept: References | None = None) -> RunReport:
    """Runs a job and judges it.

    Args:
        job: what to run.
        progress: whoever wants to follow.
        kept: what the reference did in earlier jobs; used where it fits, and added to.

    Raises:
        BadInput: the job, a file it names or a loop it names cannot be used.
    """
    job = job.checked()
    began = time.monotonic()
    blank = _blank_report(job)
    kept = References() if kept is None else kept
    try:
        placement = place(job.ranks, job.device, job.backend)
    except Unjudged as reason:
        return replace(blank, notes=(str(reason),), timings={"total": time.monotonic() - began})
    report = replace(blank, backend=placement.spec.backend, notes=placement.notes)
    try:
        traces = _trace(job, placement, began + job.timeout, progress, kept)
        stepwise = _each_step(job, placement, began + job.timeout, traces) if job.reference == INDUCTIVE else {}
    except RankFailure as failure:
        findings = _of_the_finished(job, failure)
        return replace(
            report,
            verdict=merge(f.verdict for f in findings),
            findings=findings,
            timings={"total": time.monotonic() - began},
            failure=failure.to_dict(),
        )
    except Unjudged as reason:
        return replace(report, notes=(*report.notes, str(reason)), timings={"total": time.monotonic() - began})
    judging = time.monotonic()
    reference = next(iter(traces.pop(REFERENCE, [])), None)
    judged = {loop: LoopRun(traces[loop], kind) for loop, kind in job.kinds().items()}
    findings = judge(job.due, judged, reference)
    findings = [stepwise.get(f.loop, f) if f.name == "matches_reference" else f for f in findings]
    verdict = merge(finding.verdict for finding in findings)
    findings = _located(job, placement, findings, began + job.timeout, kept)
    findings = [_with_explanation(finding, find_target(job.target)) for finding in findings]
    if not all(_in_step(run.traces) for run in judged.values()):
        # A collective that some rank did not call may still be under way; the next run must not inherit it.
        pool_for(placement.spec).stop()
    ended = time.monotonic()
    return _judged(report, findings, verdict, reference, judged, {"judging": ended - judging, "total": ended - began})


def _of_the_finished(job: Job, failure: RankFailure) -> list[Finding]:
    """What the ranks that did finish show to be wrong: a rank that skips a collective ends, and its peers hang."""
    traces = [trace for trace in failure.results.values() if isinstance(trace, Trace)]
    if not traces or traces[0].loop not in job.kinds():
        return []
    return judge_finished(job.due, LoopRun(traces, job.kinds()[traces[0].loop]), job.ranks)


def _key(job: Job, placement: Placement) -> tuple[Any, ...]:
    """What the reference depends on."""
    return job.target, job.request, job.options, placement.spec


def _located(
    job: Job, placement: Placement, findings: list[Finding], deadline: float, kept: References
) -> list[Finding]:
    """Adds to each loop that left the reference where in the step it did: that step is run again, under probes."""
    plans = {plan.loop_name: plan for plan in job.plans()}
    located: dict[str, Location | str] = {}
    for finding in findings:
        first = finding.first_divergence
        if finding.name != "matches_reference" or first is None or first.step is None or first.step < 0:
            continue
        key, pool = (*_key(job, placement), first.step), pool_for(placement.spec)

        def probes(loop: str, step: int = first.step, pool: RankPool = pool) -> list[StepProbe]:
            timeout = min(_LOCATE_TIMEOUT, max(0.1, deadline - time.monotonic()))
            return pool.run(probe_step, plans[loop], step, name=f"locating in {loop}", timeout=timeout)

        try:
            if key not in kept.probes:
                kept.probes[key] = probes(REFERENCE)[0]
            branches = job.due.branches
            located[finding.loop] = locate(first.step, first.ranks[1], kept.probes[key], probes(finding.loop), branches)
        except (RankFailure, BadInput, AssertionError) as reason:
            located[finding.loop] = f"not located: {reason}"
    return [_with_location(f, located[f.loop]) if f.loop in located and f.name in _LOCATED else f for f in findings]


def _with_location(finding: Finding, where: Location | str) -> Finding:
    if finding.verdict is not Verdict.FAIL:
        return finding
    data = finding.data | ({"location": where.to_dict()} if isinstance(where, Location) else {})
    return replace(finding, details=(str(where), *finding.details), data=data)


def _with_explanation(finding: Finding, target: Target) -> Finding:
    """Adds what the target knows about a fault of its own."""
    if finding.verdict is not Verdict.FAIL:
        return finding
    return replace(finding, details=(*explained(target, finding), *finding.details))


def _in_step(traces: Sequence[Trace]) -> bool:
    """Whether all ranks called the same collectives in the same order."""
    called = [[collective for step in trace.collectives for collective in step] for trace in traces]
    return all(calls == called[0] for calls in called)


def _trace(
    job: Job, placement: Placement, deadline: float, progress: Progress | None, kept: References
) -> dict[str, list[Trace]]:
    pool, key = pool_for(placement.spec), _key(job, placement)
    traces: dict[str, list[Trace]] = {}
    for plan in job.judged_plans() if job.reference == INDUCTIVE else job.plans():
        name = plan.loop_name
        if plan.loop == REFERENCE and key in kept.traces:
            traces[name] = [kept.traces[key]]
            continue
        results = pool.run(
            trace_loop,
            plan,
            name=name,
            timeout=max(0.1, deadline - time.monotonic()),
            watch=_reporter(progress, plan),
        )
        if progress is not None:
            progress.finish(name)
        traces[name] = [trace for trace in results if trace is not None]
        if plan.loop == REFERENCE:
            (kept.traces[key],) = traces[name]
    return traces


def _each_step(job: Job, placement: Placement, deadline: float, traces: dict[str, list[Trace]]) -> dict[str, Finding]:
    """The inductive reference's finding on each loop: every step computed anew, on another rank than it came from."""
    findings = {}
    for plan in job.judged_plans():
        shares = share_out(traces[plan.loop_name])
        results = pool_for(placement.spec).run(
            recompute,
            plan,
            each=[([share for share in shares if share.checker == rank],) for rank in range(job.ranks)],
            name=f"each step of {plan.loop_name} anew",
            timeout=max(0.1, deadline - time.monotonic()),
        )
        recomputed = [(check.step, check.ranks, x_t) for _, done in results for check, x_t in done]
        findings[plan.loop_name] = each_step(traces[plan.loop_name], results[0][0], recomputed)
    return findings


def _reporter(progress: Progress | None, plan: Plan) -> Watcher | None:
    """What tells ``progress`` where the slowest rank is; the reference runs on rank 0 alone."""
    if progress is None:
        return None
    progress.start(plan.loop_name, plan.request.schedule.steps)

    def watch(places: Sequence[Place]) -> None:
        running = places[:1] if plan.loop == REFERENCE else places
        progress.update(plan.loop_name, min(p.step for p in running) + 1)

    return watch


def _blank_report(job: Job) -> RunReport:
    schedule = job.due.schedule
    return RunReport(
        verdict=Verdict.UNKNOWN,
        target=job.target,
        request=job.request.to_dict() | asdict(job.options),
        steps=schedule.steps,
        guided_steps=schedule.guided_steps,
        world_size=job.ranks,
        backend=job.backend or "",
        device=job.device,
        environment=[],
        findings=[],
        collectives={},
        timings={},
        notes=(),
        failure=None,
        command=job.command,
    )


def _judged(
    report: RunReport,
    findings: list[Finding],
    verdict: Verdict,
    reference: Trace | None,
    runs: dict[str, LoopRun],
    timings: dict[str, float],
) -> RunReport:
    first = next(iter(runs.values())).traces
    names = sorted({c.name for run in runs.values() for t in run.traces for step in t.collectives for c in step})
    return replace(
        report,
        verdict=verdict,
        findings=findings,
        notes=(*report.notes, *first[0].notes),
        environment=[{"rank": trace.rank, **trace.environment} for trace in first],
        collectives={loop: {name: run.traces[0].count(name) for name in names} for loop, run in runs.items()},
        timings=({} if reference is None else {reference.loop: reference.seconds})
        | {loop: max(trace.seconds for trace in run.traces) for loop, run in runs.items()}
        | timings,
    )


def run(request: DenoiseRequest | None = None, **job: Any) -> RunReport:
    """Verifies that every rank holds the same ``x_t``.

    Args:
        request: what to denoise; Bagel's defaults at the size of ``tiny`` if left out.
        job: any field of :class:`Job`; a field of :class:`ModelOptions` may be given directly (``preset="small"``).

    Returns:
        The report; ``report.verdict`` is pass, fail or unknown.

    Raises:
        BadInput: something handed over cannot be used.
    """
    options = {name: job.pop(name) for name in ModelOptions.__dataclass_fields__ if name in job}
    if options:
        job["options"] = replace(job.get("options", ModelOptions()), **options)
    return run_job(Job(request=request or DenoiseRequest(), **job))
