"""The picture at the end of a run: written for the user, and told whether every rank would write the same."""

from __future__ import annotations

import base64
import time
from dataclasses import replace
from pathlib import Path

from verify.errors import BadInput, Unjudged
from verify.ranks.failure.failure import RankFailure
from verify.ranks.task_runner import TaskRunner
from verify.report.disk import replace_file, require_writable
from verify.runner.job import Job
from verify.runner.run_report import RunReport
from verify.runner.tracing import Traces
from verify.tasks.draw import draw


def require_place(job: Job) -> None:
    """Finds out before a long run whether its picture can be written.

    Raises:
        BadInput: it cannot.
    """
    if job.image is not None:
        try:
            require_writable(Path(job.image))
        except (OSError, ValueError) as error:
            raise _unwritable(job.image, error) from None


def with_picture(report: RunReport, job: Job, ranks: TaskRunner, deadline: float, traces: Traces) -> RunReport:
    """Draws each rank's picture of the first judged loop, writes rank 0's, and puts it into the report.

    Raises:
        BadInput: the picture cannot be written.
    """
    loop = next((loop for loop in job.kinds() if loop in traces), None)
    if job.image is None or loop is None:
        return report
    plan = next(plan for plan in job.judged_plans() if plan.loop_name == loop)
    finals = [(plan, trace.final) for trace in traces[loop]]
    try:
        drawn = ranks.run(draw, each=finals, name="picture", timeout=max(0.1, deadline - time.monotonic()))
    except (RankFailure, Unjudged) as reason:
        return replace(report, notes=(*report.notes, f"no picture was drawn: {str(reason).splitlines()[0]}"))
    try:
        replace_file(Path(job.image), drawn[0][1])
    except (OSError, ValueError) as error:
        raise _unwritable(job.image, error) from None
    digests = [digest for digest, _, _ in drawn]
    if len(set(digests)) == 1:
        alike = f"the same file on all {len(digests)} ranks, SHA-256 {digests[0]}"
    else:
        others = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
        alike = f"rank 0's; another file on rank {', '.join(map(str, others))}"
    png, note = drawn[0][1:]
    picture = {
        "loop": loop,
        "png": f"data:image/png;base64,{base64.b64encode(png).decode()}",
        "sha256": digests,
        "note": note,
    }
    told = (f"picture of {loop} in {job.image}: {alike}", *filter(None, [note]))
    return replace(report, notes=(*report.notes, *told), picture=picture)


def _unwritable(path: str, error: Exception) -> BadInput:
    return BadInput.of("--image", path, "a file that can be written", str(getattr(error, "strerror", None) or error))
