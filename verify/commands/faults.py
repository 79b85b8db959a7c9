"""``verify faults``: prove that the suite can fail."""

from __future__ import annotations

import argparse
import os
import time

from verify.commands.report import check_outputs, write_outputs
from verify.commands.run import job_of
from verify.errors import BadInput
from verify.options.option import reproducing
from verify.options.table import COMMANDS
from verify.ranks.local.forkserver import fork_server


def execute(arguments: argparse.Namespace) -> int:
    """Runs the catalogue; 0 only if every fault is caught and placed and the clean control passes."""
    if not arguments.list:
        fork_server()
    from rich.console import Console

    from verify.faults import FAULTS
    from verify.faults.runner import Row, run_catalogue
    from verify.ranks.plan import place
    from verify.report.document import write_document
    from verify.report.faults import print_catalogue, print_matrix
    from verify.report.progress import ProgressReport
    from verify.runner.run import pool_for
    from verify.targets.loading import load_file
    from verify.tasks.stage import describe_rank

    console = Console()
    file: str | None = getattr(arguments, "from")
    if file:
        load_file("--from", file)
    if arguments.list:
        print_catalogue(FAULTS.values(), console)
        return 0
    check_outputs(arguments)
    # A page or summary on standard output has it to itself.
    console = Console(stderr="-" in (arguments.html, arguments.markdown))
    world_size = arguments.world_size = arguments.world_size or 2
    if world_size not in (2, 3):
        raise BadInput.of("--world-size", world_size, "2 (text guidance) or 3 (image guidance too)", "choose one")
    names = _named(arguments, world_size)
    job = job_of(arguments)
    if job.device == "cpu":  # Ranks are replaced often here; on a GPU machine the server must not touch the driver.
        fork_server().warm_up("verify.tasks.probe_step:warm_up")
    began = time.monotonic()
    with ProgressReport(Console(stderr=True)) as progress:
        progress.start("faults", len(names) + 1)
        seen: list[Row] = []

        def done(row: Row) -> None:
            seen.append(row)
            progress.update("faults", len(seen))

        rows = run_catalogue([FAULTS[name] for name in names], job, world_size, done)
        progress.finish("faults")
    seconds = time.monotonic() - began
    print_matrix(rows, console)
    good = all(row.caught and row.placed for row in rows)
    console.print(
        f"{sum(r.caught for r in rows[1:])} of {len(rows) - 1} faults caught, "
        f"{sum(r.placed for r in rows[1:])} placed, "
        f"clean control {'passed' if rows[0].caught else 'FAILED'}, in {seconds:.0f} s",
        highlight=False,
        soft_wrap=True,
    )
    if arguments.json or arguments.html or arguments.markdown:
        environment = pool_for(place(world_size, job.device, job.backend).spec).run(describe_rank, job.options)
        document = {
            "schema": 1,
            "command": reproducing("faults", COMMANDS["faults"], vars(arguments)),
            "world_size": world_size,
            "device": job.device,
            "verdict": "pass" if good else "fail",
            "seconds": round(seconds, 1),
            "faults": [row.to_dict() for row in rows],
            "environment": environment,
        }
        if arguments.json:
            write_document(document, arguments.json)
        write_outputs(document, arguments)
    return 0 if good else 1


def _named(arguments: argparse.Namespace, world_size: int) -> list[str]:
    """The faults asked for: by name, or of a file, or all that can be made to happen on so many ranks.

    Raises:
        BadInput: there is no such fault, or it takes more ranks.
    """
    from verify.faults import FAULTS

    known, file = dict(FAULTS), getattr(arguments, "from")
    if file:
        place = f"{os.path.realpath(file)}:"
        known = {name: fault for name, fault in FAULTS.items() if fault.loop_reference.startswith(place)}
        if not known:
            raise BadInput.of("--from", file, "a file that registers faults", "decorate one with @fault(...)")
    if not arguments.only:
        possible = [name for name, fault in known.items() if fault.least_ranks <= world_size]
        if not possible:
            due = " or ".join(sorted({str(fault.least_ranks) for fault in known.values()}))
            raise BadInput.of("--world-size", world_size, f"{due} for the faults of {file}", "use that")
        return possible
    names: list[str] = arguments.only.split(",")
    for name in names:
        if name not in known:
            raise BadInput.of("--only", name, "names of faults", "verify faults --list shows them")
        if known[name].least_ranks > world_size:
            raise BadInput.of("--world-size", world_size, f"{known[name].least_ranks} for the fault {name}", "use that")
        if names.count(name) > 1:
            raise BadInput.of("--only", arguments.only, "each fault once", f"name {name} once")
    return names
