"""Runs the catalogue of faults and says which were caught, and placed at their step and rank."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from msgspec import structs

from verify.faults.registry import OF_ANY_ENGINE, UNKNOWN, Fault, loop_to_break
from verify.ranks.local.pool import RankPool
from verify.ranks.plan import place
from verify.ranks.rank import Rank
from verify.report.documents.faults import Expected, Faults, Injected
from verify.report.documents.parts import head
from verify.request import DenoiseRequest
from verify.runner.job import Job
from verify.runner.replay import References
from verify.runner.requests import ONE
from verify.runner.run import pool_for, run_job
from verify.runner.run_report import RunReport
from verify.runner.tracing import Progress
from verify.targets.finding import find_target
from verify.tasks.stage import describe_rank
from verify.text import place_of_call
from verify.verdict import Finding, Verdict

# A loop that hangs gets this many times the seconds of the clean control, which starts cold and runs more loops.
_TIMES_THE_CONTROL = 1.5
_LEAST_HANG_LIMIT = 3.0
# The limit where no control has been timed.
_HANG_LIMIT = 15.0
CONTROL = "clean"
BUILTIN = "builtin"
WHERE_INJECTED = (
    "injected into the loops of {target}: faults of what any loop is given (exchanges, noise, latents, settings, how "
    "it ends); those of network, guidance, caches, schedule and image guidance are written for the built-in engine"
)


class Judged(NamedTuple):
    """One run of a fault.

    Attributes:
        row: how the suite judged it, for the document.
        ended: whether every rank came to the end of the faulty loop by itself.
    """

    row: Injected
    ended: bool


def run_catalogue(faults: Sequence[Fault], base: Job, world_size: int, command: str, progress: Progress) -> Faults:
    """Runs the clean control and every fault on ``world_size`` ranks; on three, with image guidance."""
    began, kept = time.monotonic(), References()
    progress.start("faults", len(faults) + 1)
    rows = [_control(base, world_size, kept)]
    hang_limit = max(_LEAST_HANG_LIMIT, _TIMES_THE_CONTROL * rows[0].seconds)
    for fault in faults:
        progress.update("faults", len(rows))
        rows.append(run_fault(fault, base, world_size, hang_limit, kept))
    progress.finish("faults")
    environment = pool_for(place(world_size, base.device, base.backend).spec).run(describe_rank, base.options)
    notes = () if base.target == BUILTIN else (WHERE_INJECTED.format(target=base.target),)
    good = all(row.caught and row.placed for row in rows)
    return Faults(
        **head(command, environment, notes),
        verdict=Verdict.PASS if good else Verdict.FAIL,
        world_size=world_size,
        device=base.device,  # type: ignore[arg-type]
        seconds=round(time.monotonic() - began, 1),
        faults=tuple(rows),
    )


def _request(base: Job, image: bool) -> DenoiseRequest:
    changes: dict[str, Any] = {"cfg_img_scale": 1.5, "cfg_renorm_type": "text_channel"} if image else {}
    return replace(base.request, **changes)


def _control(base: Job, world_size: int, kept: References) -> Injected:
    request = _request(base, world_size == 3)
    loops: tuple[str, ...] | None = ("broadcast", "local") if len(request.branches) == world_size else ("round_robin",)
    if base.target != BUILTIN:
        loops = None
    job = replace(base, request=request, world_size=world_size, loops=loops, requests=ONE).checked()
    _start_ranks(job)
    began = time.monotonic()
    report = run_job(job, kept=kept)
    passed = report.verdict.holds
    return Injected(
        fault=CONTROL,
        summary="no fault",
        source="",
        breaks="",
        expected=None,
        verdict=report.verdict,
        fired=tuple(f.name for f in report.findings if not f.verdict.holds),
        step=None,
        rank=None,
        seconds=round(time.monotonic() - began, 3),
        caught=passed,
        placed=passed,
        message="",
    )


def applies(fault: Fault, job: Job) -> bool:
    """Whether a fault can be injected into the loops of a job's target, which is not the built-in one."""
    loop = loop_to_break(find_target(job.target), fault.base)
    if fault.target:
        return fault.target == job.target
    return loop is not None and fault.breaks in OF_ANY_ENGINE and not fault.image and not fault.extra_ranks


def job_of(fault: Fault, base: Job, world_size: int) -> Job:
    """The job that runs a fault as if it were a user's loop, on ranks of a number that it can have."""
    if fault.target:
        ranks = world_size if world_size in fault.ranks else fault.ranks[0]
        return replace(
            base,
            target=fault.target,
            options=replace(base.options, bagel=None),  # What is asked of the built-in network.
            world_size=ranks,
            # As below: they may be more than there are GPUs.
            backend=base.backend if ranks == world_size else None,
            loops=(),
            loop_reference=fault.loop_reference,
            expect=fault.base,
            requests=fault.requests,
        )
    request = _request(base, fault.image or world_size == 3)
    ranks = len(request.branches) + fault.extra_ranks if fault.extra_ranks else world_size
    expect = fault.base if fault.base != "local" or ranks == len(request.branches) else "round_robin"
    return replace(
        base,
        request=request,
        world_size=ranks,
        # More ranks than branches may be more than there are GPUs, which NCCL would refuse: what fits decides.
        backend=None if fault.extra_ranks else base.backend,
        loops=(),
        loop_reference=fault.loop_reference,
        expect=expect,
        requests=fault.requests,
    )


def run_fault(
    fault: Fault, base: Job, world_size: int, hang_limit: float = _HANG_LIMIT, kept: References | None = None
) -> Injected:
    """Runs one fault and says whether it was caught and placed.

    A fault that hangs is stopped after ``hang_limit`` seconds. If the verdict is not the expected one by then, the
    fault runs once more with the job's own limit, because the machine may only be slow.
    """
    job = job_of(fault, base, world_size)
    if not fault.hangs:
        return _run(fault, job, kept).row
    row, ended = _run(fault, replace(job, timeout=min(hang_limit, job.timeout)), kept)
    if ended or (row.caught and row.placed):  # More time would change nothing.
        return row
    again = _run(fault, job, kept).row
    return structs.replace(again, seconds=row.seconds + again.seconds)


def _run(fault: Fault, job: Job, kept: References | None) -> Judged:
    pool = _start_ranks(job)
    began = time.monotonic()
    report = run_job(job, kept=kept)
    seconds = time.monotonic() - began
    if fault.lasting:
        pool.stop()
    return judged(fault, report, seconds)


def _start_ranks(job: Job) -> RankPool:
    """Starts the ranks before the clock: only the run itself is timed and limited."""
    pool = pool_for(place(job.ranks, job.device, job.backend).spec)
    pool.run(_is_up, name="starting")
    return pool


def _is_up(rank: Rank) -> None:
    """Does nothing. It runs only where a rank is up."""


def judged(fault: Fault, report: RunReport, seconds: float) -> Judged:
    """Whether the report of a run of a fault says what it must."""
    failed = [f for f in report.findings if f.verdict is Verdict.FAIL]
    ended = report.failure is None
    fault = fault.expected_if(ended)
    failed.sort(key=lambda f: f.name != fault.caught_by)
    fired = tuple(f.name for f in failed) or ((UNKNOWN,) if report.failure is not None else ())
    if fault.caught_by == UNKNOWN:
        caught = report.verdict is Verdict.UNKNOWN and report.failure is not None
        step, rank, message = _where_it_ended(report)
    else:
        caught = fault.caught_by in fired
        step, rank, message = _where_it_failed(failed[0]) if failed else (None, None, "")
    collective = _stuck_in(report)
    if fault.hangs and report.failure is not None and "awaited" in report.failure:
        said = report.failure["awaited"]["said"]
        message += "" if message == said else f"; {said}"
    stuck = fault.stuck_in in (collective, "")
    placed = caught and stuck and fault.step in (step, None) and fault.rank in (rank, None)
    row = Injected(
        fault=fault.name,
        summary=fault.summary,
        source=fault.source,
        breaks=fault.breaks,
        expected=Expected(check=fault.caught_by, step=fault.step, rank=fault.rank, collective=fault.stuck_in),
        verdict=report.verdict,
        fired=fired,
        step=step,
        rank=rank,
        collective=collective,
        seconds=round(seconds, 3),
        caught=caught,
        placed=placed,
        message=message,
    )
    return Judged(row, ended)


def _stuck_in(report: RunReport) -> str:
    """The collective in which a rank died, or in which ranks wait for one that never joins."""
    if report.failure is None:
        return ""
    first = report.failure["ranks"][0]
    if first["state"] == "died" and first["activity"]:
        return str(first["activity"])
    return str(report.failure.get("awaited", {}).get("collective", ""))


def _where_it_ended(report: RunReport) -> tuple[int | None, int | None, str]:
    if report.failure is None:
        return None, None, ""
    first, waits = report.failure["ranks"][0], report.failure.get("awaited")
    step = first["step"] + 1
    place = None if waits is None else place_of_call(waits["collective"])
    if waits is not None and place is not None and first["rank"] in waits["waiting"]:
        step = place[0]  # Its process may have run on over NCCL.
    return step, first["rank"], str(report.failure["cause"])


def _where_it_failed(finding: Finding) -> tuple[int | None, int | None, str]:
    """The step and rank of the location; where there is none, the second of the ranks that were compared."""
    first, location = finding.first_divergence, finding.data.get("location")
    if location is not None:
        return location["step"], location["rank"], f"{finding.summary}; {finding.details[0]}"
    if first is None:
        return None, None, finding.summary
    return first.step, first.ranks[1], finding.summary
