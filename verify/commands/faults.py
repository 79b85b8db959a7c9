"""``verify faults``: prove that the suite can fail."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from verify.commands.report import check_outputs, progress_for, show
from verify.commands.run import job_of
from verify.errors import BadInput
from verify.options.option import reproducing
from verify.options.table import COMMANDS
from verify.ranks.local.forkserver import fork_server

if TYPE_CHECKING:
    from verify.faults.registry import Fault
    from verify.runner.job import Job


WORLD_SIZES = (2, 3, 4, 6)


def execute(arguments: argparse.Namespace) -> int:
    """Runs the catalogue; 0 only if every fault is caught and placed and the clean control passes."""
    if not arguments.list:
        fork_server()
    from verify.faults import FAULTS
    from verify.faults.runner import run_catalogue
    from verify.targets.loading import load_file

    file: str | None = getattr(arguments, "from")
    if file:
        load_file("--from", file)
    if arguments.list:
        return _list(FAULTS.values())
    check_outputs(arguments)
    world_size = arguments.world_size = arguments.world_size or 2
    if world_size not in WORLD_SIZES:
        fits = "2 (text guidance), 3 (image guidance too), or 4 or 6 (faults of shards and sums alone)"
        raise BadInput.of("--world-size", world_size, fits, "choose one")
    job = job_of(arguments)
    faults = [FAULTS[name] for name in _named(arguments, world_size, job)]
    command = reproducing("faults", COMMANDS["faults"], vars(arguments))
    with progress_for(arguments) as progress:
        document = run_catalogue(faults, job, world_size, command, progress)
    return show(document, arguments)


def _list(faults: Iterable[Fault]) -> int:
    from rich.console import Console

    from verify.report.console import print_block
    from verify.report.sections.blocks import Table

    rows = [[f.name, f.breaks, f.summary, f.source, f.caught_by] for f in faults]
    print_block(Table(["fault", "breaks", "what", "seen at", "caught by"], rows), Console())
    return 0


def _runs_on(fault: Fault, world_size: int) -> bool:
    """Whether a fault belongs to a run on so many ranks; on 2 and 3, those of small engines have their own number."""
    if world_size <= 3:
        return fault.least_ranks <= world_size
    return world_size in fault.ranks


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
        possible = [name for name, fault in known.items() if _runs_on(fault, world_size)]
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
