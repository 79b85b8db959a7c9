"""The main job: trace every loop on every rank, judge the traces, say what was found."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from verify.bagel.config import preset
from verify.checks import ANY, LoopRun, judge, judge_finished
from verify.errors import BadInput, Unjudged
from verify.locate import Location, locate
from verify.ranks.board import Place
from verify.ranks.failure import RankFailure
from verify.ranks.plan import Placement, place
from verify.ranks.pool import PoolSpec, RankPool, Watcher
from verify.report.document import RunReport
from verify.request import DenoiseRequest
from verify.schedule import LOOP_KINDS
from verify.targets.probe import probe_step
from verify.targets.finding import find_target
from verify.targets.protocol import REFERENCE, ModelOptions, Target, default_loops, explained, understood
from verify.targets.session import Plan, trace_loop
from verify.trace import Trace
from verify.verdict import Finding, Verdict, merge

DTYPES = ("bfloat16", "float16", "float32", "float64")
DEFAULT_TIMEOUT = 300.0
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


@dataclass(frozen=True)
class Job:
    """Everything that decides a run. Checked by :meth:`checked` before any process starts.

    Attributes:
        request: what to denoise.
        options: with which network.
        loops: which of the target's loops to judge; None for those that the target names.
        loop_reference: a loop of the user's own to judge instead.
        expect: what the user's own loop is held to: ``broadcast``, ``local``, ``round_robin`` or ``any``.
        target: whose loops.
        world_size: ranks; None for one a branch.
        device: ``cpu`` or ``cuda``.
        backend: ``gloo``, ``nccl`` or None for what fits.
        timeout: seconds for all loops together.
    """

    request: DenoiseRequest = field(default_factory=DenoiseRequest)
    options: ModelOptions = ModelOptions()
    loops: tuple[str, ...] | None = None
    loop_reference: str | None = None
    expect: str = "local"
    target: str = "builtin"
    world_size: int | None = None
    device: str = "cpu"
    backend: str | None = None
    timeout: float = DEFAULT_TIMEOUT

    @property
    def ranks(self) -> int:
        """The world size."""
        return len(self.due.branches) if self.world_size is None else self.world_size

    @property
    def judged(self) -> tuple[str, ...]:
        """The target's loops to be judged; none where the user hands over a loop."""
        if self.loop_reference is not None:
            return ()
        return default_loops(find_target(self.target)) if self.loops is None else self.loops

    @property
    def due(self) -> DenoiseRequest:
        """The request with the schedule and branches that the target makes of it: what its loops are held to."""
        return understood(find_target(self.target), self.request)

    def checked(self) -> Job:
        """This job, if it can be run.

        Raises:
            BadInput: it cannot, whatever the machine.
        """
        if self.options.checkpoint is None:
            preset(self.options.preset)
        if self.options.dtype not in DTYPES:
            raise BadInput.of("dtype", self.options.dtype, f"one of {', '.join(DTYPES)}", "choose one")
        if not 0 < self.timeout <= 86400:
            raise BadInput.of("timeout", self.timeout, "seconds above 0 and up to 86400", "choose one in that range")
        if self.expect not in (*LOOP_KINDS[1:], ANY):
            raise BadInput.of("expect", self.expect, f"one of {', '.join((*LOOP_KINDS[1:], ANY))}", "choose one")
        known = [name for name in find_target(self.target).loops if name != REFERENCE]
        for name in self.judged:
            if name not in known:
                raise BadInput.of("loops", name, f"some of {', '.join(known)}", "separate names by commas")
        if not self.judged and self.loop_reference is None:
            raise BadInput.of("loops", "", f"some of {', '.join(known)}", "name at least one")
        for kind in self.kinds().values():
            _require_fitting_world(kind, self.ranks, self.due.branches)
        return self

    def kinds(self) -> dict[str, str]:
        """What each loop to be judged is held to."""
        if self.loop_reference is not None:
            return {self._plan("").loop_name: self.expect}
        return {name: find_target(self.target).expects[name] for name in self.judged}

    @property
    def command(self) -> str:
        """The command line that reproduces this job."""
        words = ["verify", "run"]
        if self.loop_reference is not None:
            words += ["--loop", self.loop_reference, "--expect", self.expect]
        else:
            words += ["--loops", ",".join(self.judged)]
        words += ["--target", self.target, "--world-size", str(self.ranks), "--device", self.device]
        words += ["--backend", self.backend] if self.backend else []
        words += ["--preset", self.options.preset, "--dtype", self.options.dtype]
        words += ["--checkpoint", self.options.checkpoint] if self.options.checkpoint else []
        words += ["--no-autocast"] if self.device == "cuda" and not self.options.autocast else []
        default = DenoiseRequest()
        for name, value in self.request.to_dict().items():
            if name in ("height", "width") or value != default.to_dict()[name]:
                values = value if isinstance(value, list) else [value]
                words += [f"--{name.replace('_', '-')}", *map(str, values)]
        return shlex.join(words)

    def _plan(self, loop: str) -> Plan:
        reference = None if loop == REFERENCE else self.loop_reference
        return Plan(self.request, self.options, self.target, loop, reference)

    def plans(self) -> list[Plan]:
        """The reference, then each loop to be judged."""
        loops = [""] if self.loop_reference is not None else list(self.judged)
        return [self._plan(loop) for loop in (REFERENCE, *loops)]


def _require_fitting_world(kind: str, world_size: int, branches: Sequence[str]) -> None:
    """``broadcast`` and ``local`` give each rank one branch, so the numbers must match."""
    if kind in ("broadcast", "local") and world_size != len(branches):
        raise BadInput.of(
            "world size",
            world_size,
            f"{len(branches)} for a {kind} loop, because each rank evaluates one of the branches "
            f"{', '.join(branches)}",
            "use --loops round_robin for any world size, or change the CFG scales",
        )


_pools: dict[PoolSpec, RankPool] = {}


def pool_for(spec: PoolSpec) -> RankPool:
    """The pool with these ranks, kept for the whole life of this process."""
    if spec not in _pools:
        _pools[spec] = RankPool(spec)
    return _pools[spec]


def run_job(job: Job, progress: Progress | None = None) -> RunReport:
    """Runs a job and judges it.

    Raises:
        BadInput: the job, a file it names or a loop it names cannot be used.
    """
    job = job.checked()
    began = time.monotonic()
    blank = _blank_report(job)
    try:
        placement = place(job.ranks, job.device, job.backend)
    except Unjudged as reason:
        return replace(blank, notes=(str(reason),))
    report = replace(blank, backend=placement.spec.backend, notes=placement.notes)
    try:
        traces = _trace(job, placement, began + job.timeout, progress)
    except RankFailure as failure:
        findings = _of_the_finished(job, failure)
        return replace(
            report,
            verdict=merge(f.verdict for f in findings),
            findings=findings,
            failure={
                "task": failure.task,
                "cause": failure.cause,
                "seconds": failure.seconds,
                "ranks": [r.to_dict() for r in failure.reports],
            },
        )
    except Unjudged as reason:
        return replace(report, notes=(*report.notes, str(reason)))
    judging = time.monotonic()
    (reference,), *runs = traces.values()
    kinds = job.kinds()
    judged = {loop: LoopRun(run, kinds[loop]) for loop, run in zip(kinds, runs, strict=True)}
    findings = judge(job.due, judged, reference)
    verdict = merge(finding.verdict for finding in findings)
    findings = _located(job, placement, findings, began + job.timeout)
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


def _located(job: Job, placement: Placement, findings: list[Finding], deadline: float) -> list[Finding]:
    """Adds to each loop that left the reference where in the step it did: that step is run again, under probes."""
    plans = {plan.loop_name: plan for plan in job.plans()}
    located: dict[str, Location | str] = {}
    for finding in findings:
        first = finding.first_divergence
        if finding.name != "matches_reference" or first is None or first.step is None or first.step < 0:
            continue
        pool = pool_for(placement.spec)
        try:
            probes = [
                pool.run(probe_step, plans[loop], first.step, name=f"locating in {loop}",
                         timeout=min(_LOCATE_TIMEOUT, max(0.1, deadline - time.monotonic())))
                for loop in (REFERENCE, finding.loop)
            ]  # fmt: skip
            branches = job.due.branches
            located[finding.loop] = locate(first.step, first.ranks[1], probes[0][0], probes[1], branches)
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


def _trace(job: Job, placement: Placement, deadline: float, progress: Progress | None) -> dict[str, list[Trace]]:
    pool = pool_for(placement.spec)
    traces: dict[str, list[Trace]] = {}
    for plan in job.plans():
        name = plan.loop_name
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
    return traces


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
        request=job.request.to_dict() | {"preset": job.options.preset, "dtype": job.options.dtype},
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
    reference: Trace,
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
        timings={reference.loop: reference.seconds}
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


