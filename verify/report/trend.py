"""Timings of a document beside those of earlier ones. It shows; it judges nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from verify.errors import BadInput
from verify.report.documents.bench import Bench
from verify.report.documents.parts import Document
from verify.report.documents.reading import read
from verify.report.sections.blocks import Presentation, Section, Table
from verify.report.sections.environment import one_line
from verify.report.sections.plain import present

_MOST_EARLIER = 5


def earlier(folder: Path) -> list[tuple[str, Document]]:
    """The documents of a folder in the order of their names.

    Raises:
        BadInput: there is no such folder, or a file in it is no document.
    """
    if not folder.is_dir():
        raise BadInput.of("--trend", str(folder), "a folder of earlier documents", "create it; it may be empty")
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append((path.stem, read(path)))
        except BadInput as error:
            raise BadInput(f"earlier {path.name}: {error}") from None
    return found


def trend(document: Document, before: Sequence[tuple[str, Document]]) -> Presentation:
    """Seconds of the document, of at most five earlier ones, and how far it is from the median of all earlier ones.

    Earlier documents of another kind, command or hardware are left out, and that is said.
    """
    alike = [
        (name, _seconds(d))
        for name, d in before
        if type(d) is type(document) and _setting(d) == _setting(document) and _seconds(d)
    ]
    shown = alike[-_MOST_EARLIER:]
    rows = []
    for name, seconds in _seconds(document).items():
        known = [value for _, past in alike if (value := past.get(name))]
        change = f"{100 * (seconds / median(known) - 1):+.1f} %" if known else "-"
        rows.append([name, *(_cell(past.get(name)) for _, past in shown), _cell(seconds), change])
    headings = ["seconds", *(name for name, _ in shown), "now", "against the median"]
    left_out = len(before) - len(alike)
    said = f"{len(alike)} earlier documents"
    said += f", and {left_out} left out that are of another command or hardware" if left_out else ""
    sections = [Section("Timings", [Table(headings, rows)])]
    return present(document, "Timings beside earlier ones", f"{said}; one night's change is no evidence", sections)


def _setting(document: Document) -> tuple[str, str]:
    return document.command, one_line(document.environment)


def _seconds(document: Document) -> dict[str, float]:
    """What a document timed: each loop of each point of a benchmark, the phases of any other command."""
    if isinstance(document, Bench):
        return {
            f"{p.preset} {p.height}x{p.width}, {p.world_size} ranks, {p.steps} steps: {name}": loop.seconds.p50
            for p in document.points
            for name, loop in p.loops.items()
        }
    return {name: float(seconds) for name, seconds in getattr(document, "timings", {}).items()}


def _cell(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.2f}"
