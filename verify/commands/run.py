"""``verify run``: the main job."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from verify.commands.report import check_outputs, progress_for
from verify.commands.report import show as show_document
from verify.options.table import COMMANDS
from verify.options.targets import with_options
from verify.ranks.launched.launch import launched
from verify.ranks.local.forkserver import fork_server

if TYPE_CHECKING:
    from verify.runner.job import Job
    from verify.runner.run_report import RunReport
    from verify.runner.tracing import Progress


def job_of(arguments: argparse.Namespace) -> Job:
    """The job that the options of any command describe.

    Raises:
        BadInput: options that contradict each other, or a request that cannot be one.
    """
    from verify.bagel.checkpoint import config_of
    from verify.bagel.config import preset
    from verify.bagel.options import BagelOptions
    from verify.bagel.published import size_of
    from verify.errors import BadInput
    from verify.request import DenoiseRequest
    from verify.runner.job import Job
    from verify.targets.protocol import ModelOptions

    given = COMMANDS[arguments.command].fields(vars(arguments))
    request, options, bagel, job = given["request"], given["options"], given["options.bagel"], given[""]
    if job.get("loop_reference") and job.get("loops"):
        raise BadInput("--loops and --loop were both given, expected one of them; leave one out")
    job["target"] = with_options(job["target"], arguments.target_option or ())
    # As the engines run it: autocast matters on CUDA, and only to a half-precision network.
    autocast = job["device"] == "cuda" and "16" in options["dtype"] and not arguments.no_autocast
    if options.get("checkpoint") is not None:  # Its size is its own, and so is the name of that size.
        options["preset"] = size_of(config_of(Path(options["checkpoint"]), bagel.get("weights")))
    if arguments.command != "run" and job["device"] == "cuda" and job["target"] == "builtin":
        # A benchmark times eager passes and graphs side by side, and a fault in a pass must not be recorded away.
        bagel["cuda_graph"] = False
    side = preset(options["preset"]).side
    options |= {"bagel": BagelOptions(**bagel)} if bagel else {}
    return Job(
        DenoiseRequest(**{"height": side, "width": side} | request), ModelOptions(autocast=autocast, **options), **job
    )


def execute(arguments: argparse.Namespace) -> int:
    """Runs the job, prints the report and returns the exit status."""
    began = time.monotonic()
    launch = launched()
    if launch is not None:
        from verify.commands.launched import execute as execute_launched

        execute_launched(launch, arguments, job_of, show)
    fork_server()  # Starts importing torch in the process that ranks are forked from, while this one imports it too.
    from verify.runner.elsewhere import run_twice

    job = job_of(arguments)
    return show(arguments, job, run_twice, imports=time.monotonic() - began)


def show(
    arguments: argparse.Namespace, job: Job, run: Callable[[Job, Progress], RunReport], imports: float = 0.0
) -> int:
    """Has ``run`` run the job, prints and writes what it reports, and returns the exit status.

    Args:
        arguments: of the command line.
        job: what to run.
        run: how.
        imports: seconds that the command had taken before.
    """
    check_outputs(arguments)
    with progress_for(arguments) as progress:
        report = run(job, progress)
    if imports:
        total = report.timings.get("total", 0.0) + imports
        report = replace(report, timings={"imports": imports, **report.timings, "total": total})
    return show_document(report.document, arguments)
