"""Timings of a document beside those of earlier ones. It shows; it judges nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from verify.errors import BadInput
from verify.report.document import load_json
from verify.report.environment import one_line
from verify.report.mismatch import as_document
from verify.report.sections import kind_of
from verify.report.tables import Section, Table

_MOST_EARLIER = 5


def earlier(folder: Path) -> list[tuple[str, Any]]:
    """The documents of a folder in the order of their names.

    Raises:
        BadInput: there is no such folder, or a file in it is no JSON.
    """
    if not folder.is_dir():
        raise BadInput.of("--trend", str(folder), "a folder of earlier documents", "create it; it may be empty")
    return [(path.stem, load_json(path)) for path in sorted(folder.glob("*.json"))]


def trend(document: Any, before: Sequence[tuple[str, Any]]) -> Section:
    """Seconds of the document, of at most five earlier ones, and how far it is from the median of all earlier ones.

    Earlier documents of another kind, command or hardware are left out, and that is said.

    Raises:
        BadInput: the document is of no known kind.
    """
    kind = kind_of(document)
    alike = []
    for name, d in before:
        with as_document(f"earlier {name}"):
            if kind_of(d) == kind and _setting(d) == _setting(document) and _seconds(d):
                alike.append((name, d))
    now = _seconds(document)
    shown = alike[-_MOST_EARLIER:]
    rows = []
    for name, seconds in now.items():
        past = [_seconds(d).get(name) for _, d in alike]
        known = [value for value in past if value]
        change = f"{100 * (seconds / median(known) - 1):+.1f} %" if known else "-"
        past_cells = [_cell(_seconds(d).get(name)) for _, d in shown]
        rows.append([name, *past_cells, _cell(seconds), change])
    headings = ["seconds", *(name for name, _ in shown), "now", "against the median"]
    left_out = len(before) - len(alike)
    notes = [f"{left_out} earlier documents are of another command or hardware and left out"] if left_out else []
    command = document.get("command") or "the command was not recorded"
    said = f"{len(alike)} earlier documents; one night's change is no evidence of anything"
    table = Table(headings, rows)
    return Section("Timings beside earlier ones", command, one_line(document["environment"]), notes, [table], [said])


def _setting(document: Mapping[str, Any]) -> tuple[Any, str]:
    return document.get("command"), one_line(document["environment"])


def _seconds(document: Mapping[str, Any]) -> dict[str, float]:
    """What a document timed: each loop of each point of a benchmark, the phases of any other command."""
    if "points" in document:
        return {
            f"{p['preset']} {p['height']}x{p['width']}, {p['world_size']} ranks, {p['steps']} steps: {name}": float(
                loop["seconds"]["p50"]
            )
            for p in document["points"]
            for name, loop in p["loops"].items()
        }
    return {name: float(seconds) for name, seconds in document.get("timings", {}).items()}


def _cell(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.2f}"
