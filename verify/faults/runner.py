"""Running the catalogue, and judging the judge."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from verify.faults.registry import UNKNOWN, Fault
from verify.job import Job
from verify.ranks.plan import place
from verify.report.document import RunReport
from verify.request import DenoiseRequest
from verify.runner import pool_for, run_job
from verify.verdict import Finding, Verdict

# Enough for the reference and the loop; a GPU also loads its kernels in that time.
_HANG_TIMEOUT = {"cpu": 6.0, "cuda": 15.0}
CONTROL = "clean"


@dataclass(frozen=True)
class Row:
    """What the suite made of one fault.

    Attributes:
        fault: what was injected; None for the clean control.
        verdict: of the run.
        fired: the checks that failed, the expected one first.
        step: the step named; None where none was.
        rank: the rank named; None where none was.
        seconds: until the verdict.
        caught: whether the right check failed.
        placed: whether step and rank are those injected.
        message: the first line of evidence.
    """

    fault: Fault | None
    verdict: Verdict
    fired: tuple[str, ...]
    step: int | None
    rank: int | None
    seconds: float
    caught: bool
    placed: bool
    message: str

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        fault = self.fault
        return {
            "fault": CONTROL if fault is None else fault.name,
            "summary": "no fault" if fault is None else fault.summary,
            "source": "" if fault is None else fault.source,
            "breaks": "" if fault is None else fault.breaks,
            "expected": None if fault is None else {"check": fault.caught_by, "step": fault.step, "rank": fault.rank},
            "verdict": str(self.verdict),
            "fired": list(self.fired),
            "step": self.step,
            "rank": self.rank,
            "seconds": round(self.seconds, 3),
            "caught": self.caught,
            "placed": self.placed,
            "message": self.message,
        }


def run_catalogue(
    faults: Iterable[Fault], base: Job, world_size: int, done: Callable[[Row], None] = lambda row: None
) -> list[Row]:
    """The clean control, then every fault, on ``world_size`` ranks: three stand for image guidance, two for text."""
    rows = [_control(base, world_size)]
    done(rows[0])
    for fault in faults:
        rows.append(run_fault(fault, base, world_size))
        done(rows[-1])
    return rows


def _request(base: Job, image: bool) -> DenoiseRequest:
    changes: dict[str, Any] = {"cfg_img_scale": 1.5, "cfg_renorm_type": "text_channel"} if image else {}
    return replace(base.request, **changes)


def _control(base: Job, world_size: int) -> Row:
    request = _request(base, world_size == 3)
    loops = ("broadcast", "local") if len(request.branches) == world_size else ("round_robin",)
    began = time.monotonic()
    report = run_job(replace(base, request=request, world_size=world_size, loops=loops))
    passed = report.verdict is Verdict.PASS
    fired = tuple(f.name for f in report.findings if f.verdict is not Verdict.PASS)
    return Row(None, report.verdict, fired, None, None, time.monotonic() - began, passed, passed, "")


def job_of(fault: Fault, base: Job, world_size: int) -> Job:
    """The job that runs a fault as if it were a user's loop."""
    request = _request(base, fault.image or world_size == 3)
    ranks = len(request.branches) + fault.extra_ranks if fault.extra_ranks else world_size
    expect = fault.base if fault.base != "local" or ranks == len(request.branches) else "round_robin"
    timeout = _HANG_TIMEOUT[base.device] if fault.hangs else base.timeout
    return replace(
        base,
        request=request,
        world_size=ranks,
        loops=(),
        loop_reference=fault.loop_reference,
        expect=expect,
        timeout=timeout,
    )


def run_fault(fault: Fault, base: Job, world_size: int) -> Row:
    """Runs one fault and says whether it was caught and placed."""
    job = job_of(fault, base, world_size)
    pool = pool_for(place(job.ranks, job.device, job.backend).spec)
    if fault.hangs:
        pool.start()  # Its time limit is for the loop, not for starting ranks.
    for earlier in range(fault.requests - 1):
        run_job(replace(job, request=replace(job.request, seed=job.request.seed + 1 + earlier)))
    began = time.monotonic()
    report = run_job(job)
    seconds = time.monotonic() - began
    if fault.lasting:
        pool.stop()
    return _row(fault, report, seconds)


def _row(fault: Fault, report: RunReport, seconds: float) -> Row:
    failed = [f for f in report.findings if f.verdict is Verdict.FAIL]
    failed.sort(key=lambda f: f.name != fault.caught_by)
    fired = tuple(f.name for f in failed) or ((UNKNOWN,) if report.failure is not None else ())
    if fault.caught_by == UNKNOWN:
        caught = report.verdict is Verdict.UNKNOWN and report.failure is not None
        step, rank, message = _where_it_ended(report)
    else:
        caught = fault.caught_by in fired
        step, rank, message = _where_it_failed(failed[0]) if failed else (None, None, "")
    placed = caught and fault.step in (step, None) and fault.rank in (rank, None)
    return Row(fault, report.verdict, fired, step, rank, seconds, caught, placed, message)


def _where_it_ended(report: RunReport) -> tuple[int | None, int | None, str]:
    if report.failure is None:
        return None, None, ""
    first = report.failure["ranks"][0]
    return first["step"] + 1, first["rank"], str(report.failure["cause"])


def _where_it_failed(finding: Finding) -> tuple[int | None, int | None, str]:
    """A location names the rank at fault; without one it is the second of the ranks compared."""
    first, location = finding.first_divergence, finding.data.get("location")
    if location is not None:
        return location["step"], location["rank"], f"{finding.summary}; {finding.details[0]}"
    if first is None:
        return None, None, finding.summary
    return first.step, first.ranks[1], finding.summary
