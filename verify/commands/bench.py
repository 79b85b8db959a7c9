"""``verify bench``: what the broadcast costs, and what verifying costs."""

from __future__ import annotations

import argparse
import time
from typing import Any

from verify.commands.run import add_placement, add_request, job_of
from verify.errors import BadInput
from verify.ranks.family import family


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("--loops", metavar="A,B", help="loop versions, default broadcast,local")
    parser.add_argument("--sizes", default="", metavar="PIXELS,...", help="image sides (default: the preset's)")
    parser.add_argument("--alternations", type=int, default=10, metavar="N", help="runs of each loop (default 10)")
    parser.add_argument("--overhead", action="store_true", help="measure the cost of verifying instead")
    add_placement(parser)
    add_request(parser)
    parser.add_argument("--json", metavar="FILE", help="write the measurements to FILE")
    parser.add_argument("--timeout", type=float, default=600.0, metavar="S", help="seconds for one loop (default 600)")
    parser.set_defaults(loop=None, expect="local", target="builtin")


def execute(arguments: argparse.Namespace) -> int:
    """Measures, prints a table and returns 0: a benchmark judges nothing."""
    family()
    from rich.console import Console

    from verify.bench.overhead import overhead
    from verify.bench.points import measure, points
    from verify.ranks.plan import place
    from verify.report.bench import print_bench, print_overhead
    from verify.report.document import check_writable, write_document
    from verify.report.progress import ProgressReport
    from verify.runner import pool_for
    from verify.targets.session import describe_rank

    if arguments.alternations < 1:
        raise BadInput.of("--alternations", arguments.alternations, "an integer of at least 1", "choose one")
    if arguments.json:
        check_writable(arguments.json)
    job = job_of(arguments).checked()
    sides = _sides(arguments.sizes) or [job.request.height]
    jobs = [each.checked() for each in points(job, sides)]
    began = time.time()
    console = Console()
    document: dict[str, Any] = {"schema": 1, "command": _command(arguments)}
    with ProgressReport(Console(stderr=True)) as progress:
        if arguments.overhead:
            document["overhead"] = [
                {"height": j.request.height, "preset": j.options.preset, **overhead(j, arguments.alternations)}
                for j in jobs
            ]
        else:
            total = len(jobs) * (arguments.alternations + 1) * len(job.plans())
            progress.start("bench", total)
            done = 0

            def tick() -> None:
                nonlocal done
                done += 1
                progress.update("bench", done)

            document["points"] = measure(jobs, arguments.alternations, tick)
            progress.finish("bench")
    pool = pool_for(place(job.ranks, job.device, job.backend).spec)
    document["environment"] = pool.run(describe_rank, job.options)
    document["timings"] = {"total": time.time() - began}
    if arguments.overhead:
        print_overhead(document["overhead"], console)
    else:
        print_bench(document["points"], console)
    if arguments.json:
        write_document(document, arguments.json)
    return 0


def _sides(text: str) -> list[int]:
    try:
        return [int(side) for side in text.split(",") if side]
    except ValueError:
        raise BadInput.of("--sizes", text, "pixels a side separated by commas, such as 256,512", "correct it") from None


def _command(arguments: argparse.Namespace) -> str:
    words = ["verify bench", f"--preset {arguments.preset}", f"--device {arguments.device}"]
    words += [f"--loops {arguments.loops}"] if arguments.loops else []
    words += [f"--sizes {arguments.sizes}"] if arguments.sizes else []
    words += [f"--world-size {arguments.world_size}"] if arguments.world_size else []
    words += ["--overhead"] if arguments.overhead else []
    return " ".join([*words, f"--alternations {arguments.alternations}"])
