"""``verify run``: the main job."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from verify.commands.report import add_outputs, check_outputs, write_outputs
from verify.ranks.launched.launch import launched
from verify.ranks.local.forkserver import fork_server

if TYPE_CHECKING:
    from verify.report.document import RunReport
    from verify.request import DenoiseRequest
    from verify.runner.job import Job
    from verify.runner.run import Progress


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options, as the contract names them."""
    what = parser.add_argument_group("what is judged")
    what.add_argument(
        "--loops", metavar="A,B", help="the target's loops, default broadcast,local, or all of another target's"
    )
    what.add_argument("--loop", metavar="FILE_OR_MODULE:FUNCTION", help="a loop of your own instead")
    what.add_argument("--expect", default="local", help="what --loop is held to: broadcast, local, round_robin or any")
    what.add_argument(
        "--target",
        default="builtin",
        metavar="NAME",
        help="whose loops: builtin, vllm_omni, FILE.py:NAME or PACKAGE.MODULE:NAME (default builtin)",
    )
    what.add_argument(
        "--reference", default="full", help="full (default), or inductive: each step from the x_t recorded before it"
    )
    what.add_argument(
        "--window",
        type=int,
        metavar="K",
        help="keep x_t of K steps at a time, in a pass for each K steps (default all)",
    )
    add_placement(parser)
    add_request(parser)
    out = parser.add_argument_group("what comes out")
    out.add_argument("--json", metavar="FILE", help="write the findings to FILE")
    add_outputs(out)
    out.add_argument("--timeout", type=float, default=300.0, metavar="S", help="seconds for all loops (default 300)")


def add_placement(parser: argparse.ArgumentParser) -> None:
    """The options that say where ranks run and with which network."""
    where = parser.add_argument_group("where and with what")
    where.add_argument("--world-size", type=int, metavar="N", help="ranks, default one a branch")
    where.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    where.add_argument("--backend", help="gloo or nccl, default what fits")
    where.add_argument("--preset", default="tiny", help="model size: tiny, small or 7b (default tiny)")
    where.add_argument("--dtype", default="bfloat16", help="of the network (default bfloat16)")
    where.add_argument("--no-autocast", action="store_true", help="run the loop outside autocast on cuda too")
    where.add_argument("--checkpoint", metavar="DIR", help="weights in BAGEL-7B-MoT's layout instead of seeded ones")


def add_request(parser: argparse.ArgumentParser) -> None:
    """The options that say what to denoise."""
    group = parser.add_argument_group("the request")
    group.add_argument("--height", type=int, metavar="PIXELS", help="default: the preset's")
    group.add_argument("--width", type=int, metavar="PIXELS", help="default: the preset's")
    group.add_argument("--num-timesteps", type=int, metavar="N", help="points on [1, 0] (default 50)")
    group.add_argument("--timestep-shift", type=float, metavar="S", help="default 3.0")
    group.add_argument("--cfg-interval", type=float, nargs=2, metavar=("LO", "HI"), help="default 0.4 1.0")
    group.add_argument("--cfg-text-scale", type=float, metavar="S", help="default 4.0")
    group.add_argument("--cfg-img-scale", type=float, metavar="S", help="default 1.0: no image guidance")
    group.add_argument("--cfg-renorm-type", metavar="TYPE", help="global, channel or text_channel (default global)")
    group.add_argument("--cfg-renorm-min", type=float, metavar="M", help="default 0.0")
    group.add_argument("--seed", type=int, metavar="N", help="default 0")


def request_of(arguments: argparse.Namespace) -> DenoiseRequest:
    """The request that the options describe.

    Raises:
        BadInput: a value out of range.
    """
    from dataclasses import fields

    from verify.bagel.config import preset
    from verify.request import DenoiseRequest

    given = {
        f.name: getattr(arguments, f.name) for f in fields(DenoiseRequest) if getattr(arguments, f.name) is not None
    }
    side = preset(arguments.preset).side
    return DenoiseRequest(**({"height": side, "width": side} | given))


def job_of(arguments: argparse.Namespace) -> Job:
    """The job that the options describe.

    Raises:
        BadInput: options that contradict each other, or a request that cannot be one.
    """
    from verify.errors import BadInput
    from verify.runner.job import Job
    from verify.targets.protocol import ModelOptions

    if arguments.loop and arguments.loops:
        raise BadInput("--loops and --loop were both given, expected one of them; leave one out")
    options = ModelOptions(
        preset=arguments.preset,
        dtype=arguments.dtype,
        # As the engines run it: autocast matters on CUDA, and only to a half-precision network.
        autocast=arguments.device == "cuda" and "16" in arguments.dtype and not arguments.no_autocast,
        checkpoint=arguments.checkpoint,
    )
    return Job(
        request=request_of(arguments),
        options=options,
        loops=tuple(arguments.loops.split(",")) if arguments.loops else None,
        loop_reference=arguments.loop,
        expect=arguments.expect,
        target=arguments.target,
        world_size=arguments.world_size,
        device=arguments.device,
        backend=arguments.backend,
        timeout=arguments.timeout,
        reference=getattr(arguments, "reference", "full"),
        window=getattr(arguments, "window", None),
    )


def execute(arguments: argparse.Namespace) -> int:
    """Runs the job, prints the report and returns the exit status."""
    launch = launched()
    if launch is not None:
        from verify.commands.launched import execute as execute_launched

        execute_launched(launch, arguments, job_of, show)
    fork_server()  # Starts importing torch in the process that ranks are forked from, while this one imports it too.
    from verify.runner.run import run_job

    return show(arguments, job_of(arguments), run_job)


def show(arguments: argparse.Namespace, job: Job, run: Callable[[Job, Progress], RunReport]) -> int:
    """Has ``run`` run the job, prints and writes what it reports, and returns the exit status."""
    from rich.console import Console

    from verify.report.console import print_report
    from verify.report.document import build_document, write_document
    from verify.report.progress import ProgressReport

    check_outputs(arguments)
    # A page or summary on standard output has it to itself.
    console = Console(stderr="-" in (arguments.html, arguments.markdown))
    with ProgressReport(Console(stderr=True)) as progress:
        report = run(job, progress)
    print_report(report, console)
    document = build_document(report)
    if arguments.json:
        write_document(document, arguments.json)
    write_outputs(document, arguments)
    return report.exit_status
