"""The main job: trace every loop on every rank, judge the traces, say what was found."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from verify.bagel.options import BagelOptions
from verify.checks.environments_agree import environments_at_start
from verify.checks.judging import Evidence, LoopRun, guarded, judge, judge_finished
from verify.checks.merging import over_replicas, over_windows
from verify.checks.replicas_agree import replicas_agree
from verify.checks.windows_agree import windows_agree
from verify.environment.conditions import AtStart
from verify.errors import BadInput, Unjudged
from verify.ranks.failure.failure import RankFailure
from verify.ranks.local.pool import PoolSpec, RankPool
from verify.ranks.plan import place
from verify.ranks.task_runner import TaskRunner
from verify.report.run_report import RunReport
from verify.request import DenoiseRequest
from verify.runner.job import INDUCTIVE, Job
from verify.runner.picture import picture_notes, require_place
from verify.runner.replay import References, located
from verify.runner.tracing import Progress, Traces, recompute_each_step, trace_all, try_inputs
from verify.runner.world_names import in_world, world_names
from verify.targets.finding import find_target
from verify.targets.loading import reference_to
from verify.targets.protocol import REFERENCE, ModelOptions, Target, explained
from verify.tasks.describe_rank import describe_at_start
from verify.trace.sensitivity import Sensitivity
from verify.trace.trace import Trace
from verify.verdict import Finding, Verdict, merge

_pools: dict[PoolSpec, RankPool] = {}


def pool_for(spec: PoolSpec) -> RankPool:
    """The pool with these ranks, kept for the whole life of this process."""
    if spec not in _pools:
        _pools[spec] = RankPool(spec)
    return _pools[spec]


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
    blank = blank_report(job)
    try:
        placement = place(
            job.ranks,
            job.device,
            job.backend,
            larger_world=job.larger_world,
            fresh_interpreters=job.fresh_interpreters,
        )
    except Unjudged as reason:
        return replace(blank, notes=(str(reason),), timings={"total": time.monotonic() - began})
    report = replace(blank, backend=placement.spec.backend, notes=placement.notes)
    pool = pool_for(placement.spec)
    report, traces = run_on(job, pool, report, began, progress, kept)
    if not all(_in_step(of_loop) for of_loop in traces.values()):
        # A collective that some rank did not call may still be under way; the next run must not inherit it.
        pool.stop()
    return report


def run_on(
    job: Job,
    ranks: TaskRunner,
    report: RunReport,
    began: float,
    progress: Progress | None = None,
    kept: References | None = None,
) -> tuple[RunReport, Traces]:
    """Runs a checked job's loops on ``ranks``, judges them and completes ``report``; also the last pass's traces."""
    require_place(job)
    deadline = began + job.timeout
    kept = References() if kept is None else kept
    traces: Traces = {}
    passes, ends = [], []
    judging = 0.0
    at_start: list[AtStart] = []
    try:
        at_start = ranks.run(describe_at_start, name="starting", timeout=max(0.1, deadline - time.monotonic()))
        sensitivities = try_inputs(job, ranks, deadline, kept)
        for window in job.windows:
            traces = trace_all(job, ranks, deadline, progress, window, kept)
            traced = time.monotonic()
            passes.append(_findings(job, ranks, deadline, traces, sensitivities))
            judging += time.monotonic() - traced
            # A view of x_t would keep all of it.
            ends.append(
                {
                    loop: [replace(trace, x_t=trace.x_t[:0].clone()) for trace in traces[loop]]
                    for loop in job.kinds()
                    if loop in traces
                }
            )
    except RankFailure as failure:
        findings = environments_at_start(at_start) + _of_the_finished(job, failure)
        report = replace(
            report,
            verdict=merge(f.verdict for f in findings),
            findings=findings,
            timings={"total": time.monotonic() - began},
            failure=failure.to_dict(),
        )
        return report, {}
    except Unjudged as reason:
        report = replace(report, notes=(*report.notes, str(reason)), timings={"total": time.monotonic() - began})
        return report, {}
    findings = passes[0]
    if len(passes) > 1:
        findings = over_windows(passes) + [windows_agree([end[loop] for end in ends]) for loop in ends[0]]
    verdict = merge(finding.verdict for finding in findings)
    judged = time.monotonic()
    findings = located(job, ranks, findings, deadline, kept)
    findings = [_with_explanation(finding, find_target(job.target)) for finding in findings]
    report = replace(report, notes=(*report.notes, *picture_notes(job, ranks, deadline, traces)))
    if len(ranks.groups) == 1:  # Of several groups, ranks are named by replica.
        names = world_names(_first_loop(traces))
        findings = [in_world(finding, names) for finding in findings]
    ended = time.monotonic()
    timings = {"judging": judging, "locating": ended - judged, "total": ended - began}
    left_out = [loop for loop in job.kinds() if loop not in traces]
    if left_out:
        notes = (
            f"not run: {', '.join(left_out)}, since an earlier loop spoilt the state of ranks that cannot be renewed"
        )
        report = replace(report, notes=(*report.notes, notes))
    return _judged(report, findings, verdict, traces, timings), {
        loop: traces[loop] for loop in job.kinds() if loop in traces
    }


def _findings(
    job: Job, ranks: TaskRunner, deadline: float, traces: Traces, sensitivities: Sequence[Sensitivity]
) -> list[Finding]:
    """What the checks say of one pass over every loop: of each CFG group, then of the groups together."""
    of_groups = [
        {loop: [trace for trace in of_loop if trace.replica in (None, number)] for loop, of_loop in traces.items()}
        for number in range(len(ranks.groups))
    ]
    findings = []
    for group, own, sensitivity in zip(ranks.groups, of_groups, sensitivities, strict=True):
        stepwise = recompute_each_step(job, group, deadline, own) if job.reference == INDUCTIVE else {}
        runs = {loop: LoopRun(own[loop], kind) for loop, kind in job.kinds().items() if loop in own}
        found = judge(job.resolved, runs, Evidence(next(iter(own.get(REFERENCE, [])), None), sensitivity))
        findings.append([stepwise.get(f.loop, f) if f.name == "matches_reference" else f for f in found])
    if len(findings) == 1:
        return findings[0]
    together = {loop: [own[loop] for own in of_groups] for loop in runs}
    return over_replicas(findings) + [
        guarded("replicas_agree", loop, lambda replicas=replicas: replicas_agree(replicas))  # type: ignore[misc]
        for loop, replicas in together.items()
    ]


def _of_the_finished(job: Job, failure: RankFailure) -> list[Finding]:
    """What the ranks that did finish show to be wrong: a rank that skips a collective ends, and its peers hang."""
    traces = [trace for trace in failure.results.values() if isinstance(trace, Trace)]
    if not traces or traces[0].loop not in job.kinds():
        return []
    return judge_finished(job.resolved, LoopRun(traces, job.kinds()[traces[0].loop]), job.ranks)


def _with_explanation(finding: Finding, target: Target) -> Finding:
    """Adds what the target knows about a fault of its own."""
    if finding.verdict is not Verdict.FAIL:
        return finding
    return replace(finding, details=(*explained(target, finding), *finding.details))


def _in_step(traces: Sequence[Trace]) -> bool:
    """Whether all ranks called the same collectives in the same order."""
    called = [[collective for step in trace.collectives for collective in step] for trace in traces]
    return all(calls == called[0] for calls in called)


def blank_report(job: Job) -> RunReport:
    schedule = job.resolved.schedule
    return RunReport(
        verdict=Verdict.UNKNOWN,
        target=job.target,
        request=job.request.to_dict() | job.options.to_dict(),
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
    report: RunReport, findings: list[Finding], verdict: Verdict, traces: Traces, timings: dict[str, float]
) -> RunReport:
    loops = {loop: of_loop for loop, of_loop in traces.items() if loop != REFERENCE}
    first = _first_loop(traces)
    of_world = world_names(first)
    names = sorted({c.name for of_loop in loops.values() for t in of_loop for step in t.collectives for c in step})
    return replace(
        report,
        verdict=verdict,
        findings=findings,
        notes=(*report.notes, *first[0].notes),
        environment=[{"rank": of_world.get(own, own), **trace.environment} for own, trace in enumerate(first)],
        collectives={loop: {name: of_loop[0].count(name) for name in names} for loop, of_loop in loops.items()},
        timings={loop: max(trace.seconds for trace in of_loop) for loop, of_loop in traces.items()} | timings,
    )


def _first_loop(traces: Traces) -> list[Trace]:
    return next((of_loop for loop, of_loop in traces.items() if loop != REFERENCE), [])


def run(request: DenoiseRequest | None = None, **job: Any) -> RunReport:
    """Verifies that every rank holds the same ``x_t``.

    Args:
        request: what to denoise; Bagel's defaults at the size of ``tiny`` if left out.
        job: any field of :class:`Job`; a field of :class:`ModelOptions` may be given directly (``preset="small"``).
            ``loop`` is a loop of your own: a function of a module or file, or where it is (``FILE.py:NAME``).

    Returns:
        The report; ``report.verdict`` is pass, fail or unknown.

    Raises:
        BadInput: something handed over cannot be used.
    """
    return run_job(job_for(Job(request=request or DenoiseRequest()), **job))


def job_for(job: Job, **changes: Any) -> Job:
    """``job`` with what :func:`run` was handed.

    Raises:
        BadInput: a name that is none, or a loop that ranks cannot import.
    """
    options = {name: changes.pop(name) for name in ModelOptions.__dataclass_fields__ if name in changes}
    bagel = {name: changes.pop(name) for name in BagelOptions.__dataclass_fields__ if name in changes}
    if bagel:
        before = options.get("bagel", job.options.bagel)
        options["bagel"] = replace(before or BagelOptions(), **bagel)
    if options:
        changes["options"] = replace(changes.get("options", job.options), **options)
    if "loop" in changes:
        loop = changes.pop("loop")
        changes["loop_reference"] = loop if isinstance(loop, str) else reference_to(loop)
    for name in changes:
        if name not in Job.__dataclass_fields__:
            fields_of = (Job, ModelOptions, BagelOptions)
            known = ["loop", *(field for of in fields_of for field in of.__dataclass_fields__)]
            raise BadInput.of("an argument of verify.run", name, f"one of {', '.join(known)}", "choose one")
    return replace(job, **changes)
