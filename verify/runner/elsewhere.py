"""A second run of what passed: ranks that are fresh interpreters, in a larger world where the target suits any.

Forked ranks share Python's hash seed, and a group that is the whole world cannot show a rank taken from the wrong one.
The package's own loops are known to depend on neither, so that only a user's code is run again, and only where it
takes seconds.
"""

from __future__ import annotations

from dataclasses import replace

from verify.runner.job import Job
from verify.runner.requests import ONE
from verify.runner.run import run_job
from verify.runner.run_report import RunReport
from verify.runner.tracing import Progress
from verify.targets.builtin import BuiltinTarget
from verify.targets.finding import find_target
from verify.targets.protocol import fits_any_world
from verify.verdict import Verdict

# A loop that was done in seconds is not waited for much longer: in a larger world it may wait for ranks without a task.
_LEAST_SECONDS, _TIMES_AS_LONG = 20.0, 5.0


def run_twice(job: Job, progress: Progress | None = None) -> RunReport:
    """As :func:`run_job`; what passes there, and is worth it, must pass elsewhere too.

    Raises:
        BadInput: the job cannot be run.
    """
    report = run_job(job, progress)
    if report.verdict is not Verdict.PASS or not _is_worth_it(job):
        return report
    larger = fits_any_world(find_target(job.target))
    where = "in fresh interpreters" + (" and as a part of a larger world" if larger else "")
    allowed = min(job.timeout, max(_LEAST_SECONDS, _TIMES_AS_LONG * report.timings["total"]))
    # What differs there does so in any request.
    again = replace(job, larger_world=larger, fresh_interpreters=True, timeout=allowed, image=None, requests=ONE)
    second = run_job(again)
    total = report.timings["total"] + second.timings["total"]
    if larger and second.verdict is Verdict.UNKNOWN and second.failure is not None:
        # A loop that makes groups of the whole world waits there for ranks that have no task: it cannot be judged so.
        told = f"could not be run as a part of a larger world: {second.failure['cause']}"
        report = replace(report, notes=(*report.notes, told))
        second = run_job(replace(again, larger_world=False))
        total += second.timings["total"]
        where = "in fresh interpreters"
    if second.verdict is Verdict.PASS:
        timings = {**report.timings, "elsewhere": second.timings["total"], "total": total}
        return replace(report, notes=(*report.notes, f"passes too {where}"), timings=timings)
    note = f"passes as a whole world of forked ranks; what is reported here was seen {where}"
    return replace(second, notes=(*second.notes, note), timings={**second.timings, "total": total})


def _is_worth_it(job: Job) -> bool:
    plain = not job.larger_world and not job.fresh_interpreters and job.device == "cpu" and job.reference == "full"
    own = job.loop_reference is not None or type(find_target(job.target)) is not BuiltinTarget
    return plain and own and job.window is None and job.options.preset == "tiny" and job.options.checkpoint is None
