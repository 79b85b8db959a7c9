"""What cells there are: read from a TOML file of rows and columns.

``title`` names it; ``options`` of the file, of a row and of a column together are the cell's, for ``verify run``. A
column with ``rows`` concerns these alone; the other rows get the column's ``otherwise`` as what stands in the way. A
row's ``otherwise`` says the same of columns by name, and a row with ``stands`` is not run at all. ``releases`` of a row
limits it to these; so does that of the file, for rows that say none.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verify.errors import BadInput


@dataclass(frozen=True)
class Planned:
    """A cell to be run, or the reason why it cannot be.

    Attributes:
        row, column, release: its place.
        options: for ``verify run``.
        stands: what stands in the way; empty where nothing does.
    """

    row: str
    column: str
    release: str
    options: tuple[str, ...]
    stands: str = ""


@dataclass(frozen=True)
class Plan:
    """All cells, in the order in which they are run."""

    title: str
    cells: tuple[Planned, ...]


def read_plan(path: str | Path, releases: Sequence[str]) -> Plan:
    """The plan of a file, for the releases that there are.

    Raises:
        BadInput: no such file, or not such a plan.
    """
    try:
        with open(path, "rb") as file:
            found = tomllib.load(file)
        cells = tuple(cell for release in releases for cell in _cells(found, release))
        title = str(found["title"])
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise BadInput.of("the plan", str(path), "a TOML file of a title, rows and columns", what) from error
    if not cells:
        raise BadInput.of("the plan", str(path), f"a cell for {', '.join(releases)}", "correct its releases")
    return Plan(title, cells)


def _cells(plan: Mapping[str, Any], release: str) -> list[Planned]:
    everywhere = plan.get("releases")
    rows = [row for row in plan["row"] if release in row.get("releases", everywhere or [release])]
    return [_cell(plan, row, column, release) for column in plan["column"] for row in rows]


def _cell(plan: Mapping[str, Any], row: Mapping[str, Any], column: Mapping[str, Any], release: str) -> Planned:
    stands = row.get("stands", "") or row.get("otherwise", {}).get(column["name"], "")
    if not stands and row["name"] not in column.get("rows", [row["name"]]):
        stands = column["otherwise"]
    options = (*plan.get("options", ()), *row.get("options", ()), *column.get("options", ()))
    options += tuple(row.get("with", {}).get(column["name"], ()))
    return Planned(row["name"], column["name"], release, options, stands)
