"""``verify matrix`` for people: one table a release, what failed, what was not judged, and what changed."""

from __future__ import annotations

from collections import Counter

from verify.report.documents.matrix import OUTCOMES, Matrix, MatrixCell
from verify.report.sections.blocks import Block, Cell, Paragraph, Presentation, Section, Table
from verify.report.sections.plain import present
from verify.verdict import Verdict

_TITLES = {
    "fail": "What failed",
    "refused": "What the engine refused",
    "vacuous": "What ran nothing in parallel",
    "unknown": "What could not be judged",
    "pass": "What passed",
}
_VERDICTS = {"pass": Verdict.PASS, "fail": Verdict.FAIL}


def present_matrix(d: Matrix) -> Presentation:
    """A matrix as sections."""
    counts = Counter(cell.outcome for cell in d.cells)
    said = f"of {len(d.cells)} cells " + ", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES)
    if d.not_reached:
        said += f"; {d.not_reached} of the unknown were not reached in the time"
    releases = list(dict.fromkeys(cell.release for cell in d.cells))
    sections = [Section(f"Release {release}" if release else "Cells", [_grid(d, release)]) for release in releases]
    if len(releases) > 1:
        sections.insert(0, Section("Releases side by side", [_side_by_side(d, releases)]))
    sections += _lists(d)
    verdict = Verdict.FAIL if counts["fail"] else Verdict.PASS if counts["pass"] == len(d.cells) else Verdict.UNKNOWN
    return present(d, d.title, said, sections, verdict, timings={"total": d.seconds})


def _grid(d: Matrix, release: str) -> Table:
    cells = {(cell.row, cell.column): cell for cell in d.cells if cell.release == release}
    rows, columns = (list(dict.fromkeys(key[part] for key in cells)) for part in (0, 1))
    return Table(["", *columns], [[row, *(_shown(cells.get((row, column))) for column in columns)] for row in rows])


def _side_by_side(d: Matrix, releases: list[str]) -> Table:
    """Of the rows that several releases have."""
    cells = {cell.name: cell for cell in d.cells}
    pairs = dict.fromkeys((cell.row, cell.column) for cell in d.cells)
    shared = [pair for pair in pairs if sum((*pair, release) in cells for release in releases) > 1]
    rows = [[f"{row}, {column}", *(_shown(cells.get((row, column, r))) for r in releases)] for row, column in shared]
    return Table(["", *releases], rows)


def _shown(cell: MatrixCell | None) -> str | Cell:
    if cell is None:
        return "-"
    if cell.outcome in _VERDICTS:
        return Cell("", _VERDICTS[cell.outcome], cell.said, cell.outcome == "fail")
    return Cell(cell.outcome, None, cell.said)


def _lists(d: Matrix) -> list[Section]:
    found: list[Section] = []
    for outcome, title in _TITLES.items():
        cells = [cell for cell in d.cells if cell.outcome == outcome]
        if cells:
            rows: list[list[str | Cell]] = [
                [", ".join(part for part in cell.name if part), cell.said, cell.command or "-"] for cell in cells
            ]
            found.append(Section(title, [Table(["cell", "said", "command"], rows, title, folded=outcome == "pass")]))
    if d.changed is not None:
        shown: list[Block] = [Paragraph("nothing")]
        if d.changed:
            rows = [
                [f"{c.row}, {c.column}, {c.release}", c.before or "not there", c.now or "not there"] for c in d.changed
            ]
            shown = [Table(["cell", "before", "now"], rows)]
        found.insert(0, Section("What changed since the last", shown))
    return found
