"""One request: its loops traced on every rank, judged, and told as a report."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from verify.checks.environments_agree import environments_at_start
from verify.checks.judging import Evidence, LoopRun, guarded, judge, judge_finished
from verify.checks.merging import over_replicas, over_windows
from verify.checks.replicas_agree import replicas_agree
from verify.checks.windows_agree import windows_agree
from verify.environment.conditions import AtStart
from verify.errors import Unjudged
from verify.expected import Exchanges
from verify.ranks.failure.failure import RankFailure
from verify.ranks.task_runner import TaskRunner
from verify.runner.explain import explain_each_step
from verify.runner.job import INDUCTIVE, ROUNDING, Job
from verify.runner.picture import require_place, with_picture
from verify.runner.replay import References, located
from verify.runner.run_report import RunReport
from verify.runner.tracing import Progress, Traces, recompute_each_step, trace_all, try_inputs
from verify.runner.world_names import coordinates, in_world, world_names
from verify.targets.finding import find_target
from verify.targets.protocol import REFERENCE, Target, explained
from verify.tasks.describe_rank import describe_at_start
from verify.tasks.trace_loop import trace_loop
from verify.trace.sensitivity import Sensitivity
from verify.trace.trace import Trace
from verify.verdict import Finding, Verdict, merge


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
    report = with_picture(report, job, ranks, deadline, traces)
    if len(ranks.groups) == 1:  # Of several groups, ranks are named by replica.
        names, places = world_names(_first_loop(traces)), coordinates(job.layout, job.resolved.branches)
        findings = [in_world(finding, names, places) for finding in findings]
    ended = time.monotonic()
    timings = {"judging": judging, "locating": ended - judged, "total": ended - began}
    left_out = [loop for loop in job.kinds() if loop not in traces]
    if left_out:
        notes = (
            f"not run: {', '.join(left_out)}, since an earlier loop spoilt the state of ranks that cannot be renewed"
        )
        report = replace(report, notes=(*report.notes, notes))
    return _judged(job, report, findings, verdict, traces, timings), {
        loop: traces[loop] for loop in job.kinds() if loop in traces
    }


def reference_on(job: Job, ranks: TaskRunner, began: float, name: str) -> Trace:
    """What the reference does for a job's request: of the last window, where there are several."""
    plan = replace(job.plans()[0], window=job.windows[-1])
    timeout = max(0.1, began + job.timeout - time.monotonic())
    trace: Trace = ranks.run(trace_loop, plan, name=name, timeout=timeout)[0]
    return trace


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
        if job.reference == ROUNDING:
            stepwise = explain_each_step(job, group, deadline, own, len(ranks.groups))
        runs = {
            loop: LoopRun(own[loop], expects, job.layout) for loop, expects in job.expectations().items() if loop in own
        }
        found = judge(job.resolved, runs, Evidence(next(iter(own.get(REFERENCE, [])), None), sensitivity))
        findings.append([
            stepwise.get(f.loop, f) if f.name == "matches_reference" else f
            for f in found
            # Each loop is held to the reference; by rounding they may differ from each other too.
            if f.name != "loops_agree" or job.reference != ROUNDING
        ])  # fmt: skip
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
    expects = job.expectations()[traces[0].loop]
    return judge_finished(job.resolved, LoopRun(traces, expects, job.layout), job.ranks)


def _with_explanation(finding: Finding, target: Target) -> Finding:
    """Adds what the target knows about a fault of its own."""
    if finding.verdict is not Verdict.FAIL:
        return finding
    return replace(finding, details=(*explained(target, finding), *finding.details))


def blank_report(job: Job) -> RunReport:
    schedule = job.resolved.schedule
    return RunReport(
        verdict=Verdict.UNKNOWN,
        target=job.target,
        request=job.told,
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
    job: Job, report: RunReport, findings: list[Finding], verdict: Verdict, traces: Traces, timings: dict[str, float]
) -> RunReport:
    loops = {loop: of_loop for loop, of_loop in traces.items() if loop != REFERENCE}
    first = _first_loop(traces)
    places = coordinates(job.layout, job.resolved.branches)
    called = {
        loop: [_called(trace, job.expectations().get(loop)) for trace in of_loop] for loop, of_loop in loops.items()
    }
    names = sorted({name for of_loop in called.values() for of_rank in of_loop for name in of_rank})
    return replace(
        report,
        verdict=verdict,
        findings=findings,
        notes=(*report.notes, *first[0].notes),
        # By each trace's own global rank: ranks of several replicas have the same numbers in their groups.
        environment=[
            {
                "rank": position if trace.global_rank is None else trace.global_rank,
                **({"coordinates": places[trace.rank]} if trace.rank in places else {}),
                **trace.environment,
            }
            for position, trace in enumerate(first)
        ],
        collectives={loop: {name: of_loop[0][name] for name in names} for loop, of_loop in called.items()},
        timings={loop: max(trace.seconds for trace in of_loop) for loop, of_loop in traces.items()} | timings,
    )


def _called(trace: Trace, expects: str | Exchanges | None) -> Counter[str]:
    """How often a rank called each collective; those beside the group where the target declares them."""
    called = Counter(c.name for step in trace.collectives for c in step)
    if isinstance(expects, Exchanges) and expects.direct:
        heard = [h for step in trace.exchanges or () for h in step]
        called.update(h.exchange.name for h in heard if h.call is None and not h.evaluating)
    return called


def _first_loop(traces: Traces) -> list[Trace]:
    return next((of_loop for loop, of_loop in traces.items() if loop != REFERENCE), [])
