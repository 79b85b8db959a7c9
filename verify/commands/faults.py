"""``verify faults``: prove that the suite can fail."""

from __future__ import annotations

import argparse
import os
import time
from typing import TYPE_CHECKING, Any

from verify.commands.report import check_outputs, progress_for, show
from verify.commands.run import job_of
from verify.errors import BadInput
from verify.options.option import reproducing
from verify.options.table import COMMANDS
from verify.ranks.local.forkserver import fork_server

if TYPE_CHECKING:
    from verify.runner.job import Job


def execute(arguments: argparse.Namespace) -> int:
    """Runs the catalogue; 0 only if every fault is caught and placed and the clean control passes."""
    if not arguments.list:
        fork_server()
    from rich.console import Console

    from verify.faults import FAULTS
    from verify.faults.runner import BUILTIN, WHERE_INJECTED, run_catalogue
    from verify.report.console import print_block
    from verify.report.documents.faults import Faults, Injected
    from verify.report.documents.parts import head
    from verify.report.sections.blocks import Table
    from verify.targets.loading import load_file
    from verify.verdict import Verdict

    file: str | None = getattr(arguments, "from")
    if file:
        load_file("--from", file)
    if arguments.list:
        known = [[f.name, f.breaks, f.summary, f.source, f.caught_by] for f in FAULTS.values()]
        print_block(Table(["fault", "breaks", "what", "seen at", "caught by"], known), Console())
        return 0
    check_outputs(arguments)
    world_size = arguments.world_size = arguments.world_size or 2
    if world_size not in (2, 3):
        raise BadInput.of("--world-size", world_size, "2 (text guidance) or 3 (image guidance too)", "choose one")
    job = job_of(arguments)
    names = _named(arguments, world_size, job)
    if job.device == "cpu":  # Ranks are replaced often here; on a GPU machine the server must not touch the driver.
        fork_server().warm_up("verify.tasks.probe_step:warm_up")
    began = time.monotonic()
    with progress_for(arguments) as progress:
        progress.start("faults", len(names) + 1)
        seen: list[Injected] = []

        def done(row: Injected) -> None:
            seen.append(row)
            progress.update("faults", len(seen))

        rows = run_catalogue([FAULTS[name] for name in names], job, world_size, done)
        progress.finish("faults")
    good = all(row.caught and row.placed for row in rows)
    command = reproducing("faults", COMMANDS["faults"], vars(arguments))
    notes = () if job.target == BUILTIN else (WHERE_INJECTED.format(target=job.target),)
    document = Faults(
        **head(command, _environment(job, world_size), notes),
        verdict=Verdict.PASS if good else Verdict.FAIL,
        world_size=world_size,
        device=job.device,  # type: ignore[arg-type]
        seconds=round(time.monotonic() - began, 1),
        faults=tuple(rows),
    )
    return show(document, arguments)


def _environment(job: Job, world_size: int) -> list[dict[str, Any]]:
    from verify.ranks.plan import place
    from verify.runner.run import pool_for
    from verify.tasks.stage import describe_rank

    return pool_for(place(world_size, job.device, job.backend).spec).run(describe_rank, job.options)


def _named(arguments: argparse.Namespace, world_size: int, job: Job) -> list[str]:
    """The faults asked for: by name, or of a file, or all that can be made to happen on so many ranks.

    Raises:
        BadInput: there is no such fault, or it takes more ranks.
    """
    from verify.faults import FAULTS
    from verify.faults.runner import BUILTIN, applies

    known, file = dict(FAULTS), getattr(arguments, "from")
    if file:
        place = f"{os.path.realpath(file)}:"
        known = {name: fault for name, fault in FAULTS.items() if fault.loop_reference.startswith(place)}
        if not known:
            raise BadInput.of("--from", file, "a file that registers faults", "decorate one with @fault(...)")
    if job.target != BUILTIN:
        known = {name: fault for name, fault in known.items() if applies(fault, job)}
    if not arguments.only:
        possible = [name for name, fault in known.items() if fault.least_ranks <= world_size]
        if not possible:
            needed = " or ".join(sorted({str(fault.least_ranks) for fault in known.values()}))
            raise BadInput.of("--world-size", world_size, f"{needed} for the faults of {file}", "use that")
        return possible
    names: list[str] = arguments.only.split(",")
    for name in names:
        if name not in known:
            fits = "" if job.target == BUILTIN else f" that can be injected into {job.target}"
            raise BadInput.of("--only", name, f"names of faults{fits}", "verify faults --list shows them")
        if known[name].least_ranks > world_size:
            raise BadInput.of("--world-size", world_size, f"{known[name].least_ranks} for the fault {name}", "use that")
        if names.count(name) > 1:
            raise BadInput.of("--only", arguments.only, "each fault once", f"name {name} once")
    return names
