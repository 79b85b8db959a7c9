"""The pictures of a run's page as PNG files, for those who paste pictures elsewhere."""

from __future__ import annotations

import io
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

from verify.errors import BadInput
from verify.report import evidence
from verify.report.console import header
from verify.report.document import RunReport, write_whole
from verify.report.tables import Bars, Section, Table
from verify.text import literal
from verify.verdict import Finding, Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DOTS_PER_INCH = 150
# Okabe and Ito, "Color Universal Design" (2008): told apart with any colour vision.
_AGREE, _DIFFER = "#56B4E9", "#D55E00"
# Characters of a table's cell to a line.
_CELL = 40
_STYLES = ("-", "--", ":", "-.")


def write_plots(report: RunReport, folder: Path) -> list[Path]:
    """Writes ``agreement.png`` and, for each comparison that failed, ``growth-N.png`` and ``map-N.png``.

    Raises:
        BadInput: the folder cannot be made or written to, or the run compared nothing that could be drawn.
    """
    figures: dict[str, Figure] = {}
    grids = evidence.grids(report)
    if not grids:
        raise BadInput.of("--png", str(folder), "a run that compared x_t", "this one compared none: leave --png out")
    figures["agreement.png"] = _agreement(report, grids)
    failed = [finding for finding in report.findings if finding.verdict is Verdict.FAIL and evidence.growth(finding)]
    for number, finding in enumerate(failed):
        figures[f"growth-{number}.png"] = _growth(finding)
    mapped = [tokens for f in report.findings if (tokens := evidence.token_map(report, f)) is not None]
    for number, tokens in enumerate(mapped):
        figures[f"map-{number}.png"] = _map(tokens)
    return _saved(figures, folder)


def write_section_plots(section: Section, folder: Path) -> list[Path]:
    """Writes ``bars-N.png`` of a document that is no run's; of one without bars, ``table-N.png``.

    Raises:
        BadInput: the folder cannot be made or written to, or the document holds neither.
    """
    figures = {f"bars-{number}.png": _bars(bars) for number, bars in enumerate(section.bars)}
    if not figures:
        figures = {f"table-{number}.png": _table(table) for number, table in enumerate(section.tables)}
    if not figures:
        raise BadInput.of("--png", str(folder), "a document with numbers", "this one has none: leave --png out")
    return _saved(figures, folder)


def _saved(figures: dict[str, Figure], folder: Path) -> list[Path]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput.of("--png", str(folder), "a folder that can be written to", str(error)) from None
    for name, figure in figures.items():
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": None})
        write_whole(folder / name, content.getvalue())
    return [folder / name for name in figures]


def _bars(shown: Bars) -> Figure:
    figure = _new(9, 1.2 + 0.4 * len(shown.rows))
    axes: Axes = figure.subplots()
    for row, (_, low, middle, high) in enumerate(shown.rows):
        axes.barh(-row, middle, 0.6, color=_AGREE)
        axes.plot([low, high], [-row, -row], "k|-")
    axes.set_yticks([-row for row in range(len(shown.rows))], [_plain(label) for label, *_ in shown.rows], fontsize=8)
    axes.axvline(0, color="k", linewidth=0.8)
    axes.set_xlabel(_plain(shown.unit))
    axes.set_title(_plain(shown.title), fontsize=10)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return figure


def _table(table: Table) -> Figure:
    from matplotlib.transforms import Bbox

    rows = [[_plain(fill(cell, _CELL)) for cell in row] for row in table.rows]
    headings = [_plain(fill(heading, _CELL)) for heading in table.headings]
    lines = [max(cell.count("\n") + 1 for cell in row) for row in [headings, *rows]]
    widths = [max(len(line) for row in [headings, *rows] for line in row[i].split("\n")) for i in range(len(headings))]
    figure = _new(max(6.0, 0.085 * (sum(widths) + 3 * len(widths))), 0.6 + 0.17 * sum(lines) + 0.06 * len(lines))
    axes: Axes = figure.subplots()
    axes.axis("off")
    axes.set_title(_plain(table.caption), fontsize=10)
    total = sum(widths) + 3 * len(widths)
    drawn = axes.table(rows, colLabels=headings, colWidths=[(width + 3) / total for width in widths],
                       cellLoc="left", loc="center", bbox=Bbox.unit())  # fmt: skip
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(8)
    for (row, _), cell in drawn.get_celld().items():
        cell.set_height(lines[row])
        cell.set_linewidth(0.4)
    return figure


def _new(width: float, height: float) -> Figure:
    # Not through pyplot: that keeps every figure, and looks for a display.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _agreement(report: RunReport, grids: list[evidence.Grid]) -> Figure:
    strips = [(grid, strip) for grid in grids for strip in grid.strips]
    figure = _new(9, 1.2 + 0.32 * len(strips))
    axes: Axes = figure.subplots()
    for row, (_, strip) in enumerate(strips):
        agree = [step for step, state in enumerate(strip.states) if state == 0]
        differ = [(step, state) for step, state in enumerate(strip.states) if state]
        # Low bars agree, tall ones differ; colour repeats it.
        axes.bar(agree, [0.25] * len(agree), 0.8, bottom=-row, color=_AGREE, label="agrees" if row == 0 else None)
        axes.bar(
            [step for step, _ in differ], [0.45 + 0.4 * state for _, state in differ], 0.9, bottom=-row, color=_DIFFER
        )
    labels = [f"{grid.loop}: {grid.what}, {strip.label}" if grid.loop != "*" else f"{grid.what}, {strip.label}"
              for grid, strip in strips]  # fmt: skip
    axes.set_yticks([-row + 0.2 for row in range(len(strips))], [_plain(label) for label in labels], fontsize=8)
    axes.set_xlabel("step; low: every byte is the same, tall: bytes differ")
    axes.set_title(_plain(f"{report.verdict}: {header(report).splitlines()[0]}"), fontsize=10)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return figure


def _growth(finding: Finding) -> Figure:
    figure = _new(9, 3.6)
    series = evidence.growth(finding)
    for axes, what in zip(figure.subplots(1, 2), ("mismatched", "max_ulp"), strict=True):
        for i, each in enumerate(series):
            values = [float("nan") if value is None else value for value in getattr(each, what)]
            axes.plot(values, _STYLES[i % len(_STYLES)], label=_plain(each.label))
        axes.set_yscale("symlog", linthresh=1)
        axes.set_ylim(0, 3 * max([1, *(value for each in series for value in getattr(each, what) if value)]))
        axes.set_xlabel("step")
        axes.set_title({"mismatched": "elements that differ", "max_ulp": "greatest distance, ULP"}[what], fontsize=10)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", fontsize=8)
    figure.suptitle(_plain(f"{finding.name} ({finding.loop})"), fontsize=10)
    return figure


def _map(tokens: evidence.TokenMap) -> Figure:
    figure = _new(5, 5)
    axes: Axes = figure.subplots()
    axes.imshow(tokens.rows, cmap="cividis", vmin=0, vmax=9)
    for row, column in tokens.differing[:8] if len(tokens.differing) <= 8 else ():
        axes.plot(column, row, "o", markersize=16, markerfacecolor="none", markeredgecolor=_DIFFER)
    axes.set_title(_plain(f"tokens with other bytes in {tokens.what}"), fontsize=10)
    axes.set_xlabel("column of the image's tokens")
    axes.set_ylabel("row")
    return figure


def _plain(text: str) -> str:
    """No dollar begins a formula, and no character is one that a font lacks."""
    return literal(text).encode("ascii", "backslashreplace").decode().replace("$", r"\$")
