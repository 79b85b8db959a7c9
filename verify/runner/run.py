"""The main job: every request of a run, judged and told as one report."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from verify.bagel.options import BagelOptions
from verify.errors import BadInput
from verify.request import DenoiseRequest
from verify.runner.job import Job
from verify.runner.pools import InPools, pool_for
from verify.runner.replay import References
from verify.runner.run_report import RunReport
from verify.runner.sequence import run_requests
from verify.runner.tracing import Progress
from verify.targets.loading import reference_to
from verify.targets.protocol import ModelOptions

__all__ = ["job_for", "pool_for", "run", "run_job"]


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
    return run_requests(job, InPools(time.monotonic(), progress, References() if kept is None else kept))


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
