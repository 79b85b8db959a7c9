"""Small pictures as inline SVG. Shape carries the meaning, colour repeats it; the page gives classes their colours.

Text is never part of a picture: it would shrink and grow with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from verify.report.sections.blocks import Bars, Chart, Strip, TokenMap
from verify.text import literal
from verify.verdict import Verdict

_SHAPES = {
    Verdict.PASS: '<circle cx="8" cy="8" r="7"/><path d="M4.5 8.3l2.4 2.4 4.6-5"/>',
    Verdict.FAIL: '<path class="body" d="M5 1h6l4 4v6l-4 4H5l-4-4V5z"/><path d="M5.3 5.3l5.4 5.4M10.7 5.3l-5.4 5.4"/>',
    Verdict.EXPLAINED: '<circle cx="8" cy="8" r="7"/><path d="M3.8 6.8q2-2 4.2-.4t4.2-.4M3.8 10.3q2-2 4.2-.4t4.2-.4"/>',
    Verdict.UNKNOWN: (
        '<path class="body" d="M8 .6L15.4 8 8 15.4.6 8z"/><path d="M6 6.6a2 2 0 1 1 2.6 1.9q-.6.3-.6 1M8 11.4v.3"/>'
    ),
}
_DASHES = ("", "6 3", "2 3", "8 3 2 3", "1 2", "10 4")
_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
_MOST_RULES = 5


def mark(verdict: Verdict) -> Markup:
    """A disc with a tick, an octagon with a cross, a diamond with a question mark."""
    return Markup(f'<svg class="mark" viewBox="0 0 16 16" aria-hidden="true">{_SHAPES[verdict]}</svg>')


def _svg(kind: str, width: float, height: float, body: str, label: str = "", stretched: bool = True) -> Markup:
    aspect = ' preserveAspectRatio="none"' if stretched else ""
    drawn = Markup('<svg class="{}" viewBox="0 0 {:g} {:g}"{} role="img" aria-label="{}">{}</svg>')
    return drawn.format(kind, width, height, Markup(aspect), literal(label, line_breaks=False), Markup(body))


def strip(shown: Strip) -> Markup:
    """One cell for each step: low where all agree, tall by the share that differs, a dot where nothing was compared."""
    agree, differ, missing = [], [], []
    for step, state in enumerate(shown.states):
        if state is None:
            missing.append(f"M{step}.4 9h.2v1h-.2z")
        elif not state:
            agree.append(f"M{step}.1 7.4h.8v2.6h-.8z")
        else:
            height = 4 + 6 * state
            differ.append(f"M{step}.04 {10 - height:g}h.92v{height:g}h-.92z")
    named = (("agree", agree), ("differ", differ), ("missing", missing))
    body = "".join(f'<path class="{name}" d="{"".join(cells)}"/>' for name, cells in named if cells)
    return _svg("strip", max(1, len(shown.states)), 10, body, f"{shown.label} {shown.said}")


@dataclass(frozen=True)
class Plot:
    """A chart's picture, and what stands beside and below it, in percent of its height and width."""

    picture: Markup
    rows: Sequence[tuple[float, str]]
    columns: Sequence[tuple[float, str]]


def plot(chart: Chart) -> Plot:
    """Counts over steps on a logarithmic axis with 0 at its foot; one line a series, told apart by dashes."""
    steps = max((len(values) for _, values in chart.series), default=0)
    top = max((value for _, values in chart.series for value in values if value), default=1)
    decades = max(1, math.ceil(math.log10(top))) if top > 1 else 1
    # 0 lies one unit below 1, since a logarithm does not reach it.
    unit = 100 / (decades + 1)

    def x(step: int) -> float:
        return round(100 * step / max(1, steps - 1), 2)

    def y(value: int) -> float:
        return round(unit * (1 + math.log10(value)) if value else 0.0, 2)

    labels = [(0, "0")] + [(10**d, _power(d)) for d in range(0, decades + 1, -(-decades // _MOST_RULES))]
    body = "".join(f'<path class="rule" d="M0 {100 - y(value):g}H100"/>' for value, _ in labels)
    for number, (_, values) in enumerate(chart.series):
        points = [None if value is None else (x(step), 100 - y(value)) for step, value in enumerate(values)]
        body += _stroke(number, _line(points))
    columns = [(x(step), str(step)) for step in sorted({0, (steps - 1) // 2, steps - 1})] if steps else []
    return Plot(_svg("chart", 100, 100, body, chart.title), [(y(value), name) for value, name in labels], columns)


def bars(shown: Bars) -> Iterator[tuple[str, str, Markup]]:
    """For each row its label, its values in words, and a bar from 0 to the middle one with a whisker over all."""
    least = min(0.0, *(low for _, low, _, _ in shown.rows))
    most = max(0.0, *(high for _, _, _, high in shown.rows))
    span = (most - least) or 1.0

    def x(value: float) -> float:
        return 0.5 + 99 * (value - least) / span

    for label, low, middle, high in shown.rows:
        left, right = sorted((x(0.0), x(middle)))
        body = f'<rect class="bar" x="{left:.2f}" y="2" width="{right - left:.2f}" height="12"/>'
        ends = f"M{x(low):.2f} 3v10M{x(high):.2f} 3v10"
        body += f'<path class="rule" d="M{x(0.0):.2f} 0V16"/>'
        body += f'<path class="whisker" d="M{x(low):.2f} 8H{x(high):.2f}{ends}"/>'
        told = f"{middle:.4g} {shown.unit} ({low:.4g} to {high:.4g})"
        yield label, told, _svg("strip", 100, 16, body, f"{label} {told}")


def sample(number: int) -> Markup:
    """The line of a chart's ``number``-th series, for its legend."""
    return Markup(f'<svg class="sample" viewBox="0 0 28 6" aria-hidden="true">{_stroke(number, "M0 3H28")}</svg>')


def _stroke(number: int, path: str) -> str:
    dashes = _DASHES[number % len(_DASHES)]
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<path class="line line{number % 3}"{dashed} d="{path}"/>'


def token_map(tokens: TokenMap) -> Markup:
    """The image's tokens: a square where one differs, larger the more of its channels do; a few are circled."""
    height, width = len(tokens.rows), len(tokens.rows[0])
    margin = max(width, height) / 24 + 0.6
    cells: dict[int, list[str]] = {}
    for row, column in tokens.differing:
        ninths = tokens.rows[row][column]
        side = 0.44 + ninths / 18
        inset = margin + (1 - side) / 2
        square = f"M{column + inset:.2f} {row + inset:.2f}h{side:.2f}v{side:.2f}h-{side:.2f}z"
        cells.setdefault(ninths, []).append(square)
    body = f'<rect class="frame" x="{margin:.2f}" y="{margin:.2f}" width="{width}" height="{height}"/>'
    for ninths, paths in sorted(cells.items()):
        body += f'<path fill-opacity="{0.6 + 0.4 * ninths / 9:.2f}" d="{"".join(paths)}"/>'
    if len(tokens.differing) <= 8:
        for row, column in tokens.differing:
            centre = f'cx="{column + 0.5 + margin:.2f}" cy="{row + 0.5 + margin:.2f}"'
            body += f'<circle {centre} r="{margin:.2f}"/>'
    return _svg("map", width + 2 * margin, height + 2 * margin, body, tokens.title, stretched=False)


def _line(points: Sequence[tuple[float, float] | None]) -> str:
    """A path that is broken where there is no point; a lone point is drawn as a short dash."""
    words = []
    for i, point in enumerate(points):
        if point is not None:
            before = points[i - 1] if i else None
            words.append(f"{'L' if before else 'M'}{point[0]:g} {point[1]:g}" + ("" if before else "h.1"))
    return "".join(words)


def _power(decade: int) -> str:
    return f"{10**decade:,}" if decade < 5 else f"10{str(decade).translate(_SUPERSCRIPTS)}"
