"""``verify matrix``: many runs, side by side."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from verify.commands.report import check_outputs, progress_for, show
from verify.errors import BadInput
from verify.matrix.plan import read_plan
from verify.matrix.running import NOT_REACHED, Runner, usable
from verify.options.option import reproducing
from verify.options.table import COMMANDS
from verify.report.documents.matrix import Changed, Matrix, MatrixCell
from verify.report.documents.parts import head
from verify.report.documents.reading import read

_CHILD = ("-m", "verify.commands.matrix_child")
_PACKAGED = "vllm_omni"


def execute(arguments: argparse.Namespace) -> int:
    """Runs the plan; 0 if every cell passes, 1 if one fails, 3 otherwise."""
    check_outputs(arguments)
    interpreters = _interpreters(arguments.python)
    plan = read_plan(_plan(arguments.plan), list(interpreters))
    before = None if arguments.since is None else _matrix(arguments.since)
    began = time.monotonic()
    runner = Runner(_CHILD, interpreters, Path(arguments.keep), began + arguments.time_limit, arguments.timeout)
    with progress_for(arguments) as progress:
        progress.start("cells", len(plan.cells))
        count = 0

        def done(cell: MatrixCell) -> None:
            nonlocal count
            count += 1
            progress.update("cells", count)

        cells = tuple(runner.run(plan, arguments.jobs, done))
        progress.finish("cells")
    document = Matrix(
        **head(
            reproducing("matrix", COMMANDS["matrix"], vars(arguments)),
            notes=("each release ran in a Python of its own",) if len(interpreters) > 1 else (),
        ),
        title=plan.title,
        cells=cells,
        changed=None if before is None else changed(before.cells, cells),
        seconds=round(time.monotonic() - began, 1),
        not_reached=sum(cell.said == NOT_REACHED for cell in cells),
    )
    return show(document, arguments)


def changed(before: Sequence[MatrixCell], now: Sequence[MatrixCell]) -> tuple[Changed, ...]:
    """Every cell that has another outcome than before, or was not in one of the two."""
    old, new = ({cell.name: cell.outcome for cell in cells} for cells in (before, now))
    return tuple(
        Changed(row=name[0], column=name[1], release=name[2], before=old.get(name, ""), now=new.get(name, ""))
        for name in dict.fromkeys((*old, *new))
        if old.get(name) != new.get(name)
    )


def _plan(name: str) -> Path:
    """A file, or one of the plans that ship, by name."""
    if name == _PACKAGED:
        return Path(str(resources.files("verify.matrix").joinpath(f"{name}.toml")))
    return Path(name)


def _interpreters(given: Sequence[str] | None) -> dict[str, str]:
    """For each release the Python that has it.

    Raises:
        BadInput: one is not RELEASE=PYTHON, or is not there.
    """
    found: dict[str, str] = {}
    for each in given or ():
        release, equals, python = each.partition("=")
        if not equals or not release or not usable(python):
            raise BadInput.of("--python", each, "RELEASE=PYTHON, an interpreter that has that release", "correct it")
        found[release] = python
    if not found:
        raise BadInput("no --python was given, expected RELEASE=PYTHON for each release; name at least one")
    return found


def _matrix(path: str) -> Matrix:
    document = read(path)
    if not isinstance(document, Matrix):
        raise BadInput.of("--since", path, "a document of verify matrix", "name another")
    return document
