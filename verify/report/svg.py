"""Small pictures as inline SVG. Shape carries the meaning, colour repeats it; the page gives classes their colours."""

from __future__ import annotations

import math
from collections.abc import Sequence

from verify.report.evidence import Strip, TokenMap
from verify.report.tables import Bars, html_text
from verify.verdict import Verdict

_SHAPES = {
    Verdict.PASS: '<circle cx="8" cy="8" r="7"/><path d="M4.5 8.3l2.4 2.4 4.6-5"/>',
    Verdict.FAIL: '<path class="body" d="M5 1h6l4 4v6l-4 4H5l-4-4V5z"/><path d="M5.3 5.3l5.4 5.4M10.7 5.3l-5.4 5.4"/>',
    Verdict.UNKNOWN: (
        '<path class="body" d="M8 .6L15.4 8 8 15.4.6 8z"/><path d="M6 6.6a2 2 0 1 1 2.6 1.9q-.6.3-.6 1M8 11.4v.3"/>'
    ),
}
_DASHES = ("", "6 3", "2 3", "8 3 2 3", "1 2", "10 4")
_ROW = 38
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 360, 190, 46, 28, 10


def mark(verdict: Verdict) -> str:
    """A disc with a tick, an octagon with a cross, a diamond with a question mark."""
    return f'<svg class="mark" viewBox="0 0 16 16" aria-hidden="true">{_SHAPES[verdict]}</svg>'


def strip(shown: Strip) -> str:
    """A cell a step: low where all agree, tall by the share that differs, a speck where nothing was compared."""
    agree, differ, missing = [], [], []
    for step, state in enumerate(shown.states):
        if state is None:
            missing.append(f"M{step}.4 9h.2v1h-.2z")
        elif not state:
            agree.append(f"M{step}.1 7.4h.8v2.6h-.8z")
        else:
            height = 4 + 6 * state
            differ.append(f"M{step}.04 {10 - height:g}h.92v{height:g}h-.92z")
    paths = "".join(
        f'<path class="{name}" d="{"".join(cells)}"/>'
        for name, cells in (("agree", agree), ("differ", differ), ("missing", missing))
        if cells
    )
    label = html_text(f"{shown.label} {shown.said}")
    return (
        f'<svg class="strip" viewBox="0 0 {max(1, len(shown.states))} 10" preserveAspectRatio="none" role="img" '
        f'aria-label="{label}"><title>{label}</title>{paths}</svg>'
    )


def chart(title: str, series: Sequence[tuple[str, Sequence[int | None]]]) -> str:
    """Counts over steps on a logarithmic axis with 0 at its foot; a line a series, told apart by dashes."""
    steps = max((len(values) for _, values in series), default=0)
    top = max((value for _, values in series for value in values if value), default=1)
    decades = max(1, math.ceil(math.log10(top))) if top > 1 else 1
    every = -(-decades // 5)
    plot_width, plot_height = _WIDTH - _LEFT - 10, _HEIGHT - _BOTTOM - _TOP
    # 0 lies one unit below 1: a logarithm has no place for it.
    unit = plot_height / (decades + 1)

    def x(step: int) -> float:
        return _LEFT + plot_width * (step / max(1, steps - 1))

    def y(value: int) -> float:
        return _HEIGHT - _BOTTOM - (unit * (1 + math.log10(value)) if value else 0)

    parts = []
    for value, name in [(0, "0")] + [(10**d, _power(d)) for d in range(0, decades + 1, every)]:
        parts.append(f'<path class="rule" d="M{_LEFT} {y(value):.1f}H{_WIDTH - 10}"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{y(value) + 4:.1f}" text-anchor="end">{name}</text>')
    for step in sorted({0, (steps - 1) // 2, steps - 1}) if steps else ():
        parts.append(f'<text x="{x(step):.1f}" y="{_HEIGHT - 11}" text-anchor="middle">{step}</text>')
    parts.append(f'<text x="{_LEFT + plot_width / 2}" y="{_HEIGHT}" text-anchor="middle">step</text>')
    for i, (_, values) in enumerate(series):
        points = [None if value is None else (x(step), y(value)) for step, value in enumerate(values)]
        parts.append(_stroke(i, _line(points)))
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT + 4}" role="img" aria-label="{html_text(title)}">'
        f"<title>{html_text(title)}</title>{''.join(parts)}</svg>"
    )


def bars(shown: Bars) -> str:
    """A bar a row from 0 to its middle value, with a whisker from the least to the greatest; labels stand above."""
    least = min(0.0, *(low for _, low, _, _ in shown.rows))
    most = max(0.0, *(high for _, _, _, high in shown.rows))
    span = (most - least) or 1.0
    height = _ROW * len(shown.rows) + 4

    def x(value: float) -> float:
        return 2 + (_WIDTH - 4) * (value - least) / span

    parts = [f'<path class="rule" d="M{x(0.0):.1f} 0V{height}"/>']
    for i, (label, low, middle, high) in enumerate(shown.rows):
        top, centre = _ROW * i + 17, _ROW * i + 23
        left, right = sorted((x(0.0), x(middle)))
        told = f"{middle:.4g} {shown.unit} ({low:.4g} to {high:.4g})"
        parts.append(f'<text x="2" y="{_ROW * i + 12}">{html_text(label)}</text>')
        parts.append(f'<text x="{_WIDTH - 2}" y="{_ROW * i + 12}" text-anchor="end">{html_text(told)}</text>')
        parts.append(f'<rect class="bar" x="{left:.1f}" y="{top}" width="{right - left:.1f}" height="12"/>')
        ends = f"M{x(low):.1f} {top}v12M{x(high):.1f} {top}v12"
        parts.append(f'<path class="whisker" d="M{x(low):.1f} {centre}H{x(high):.1f}{ends}"/>')
    title = html_text(shown.title)
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{title}">'
        f"<title>{title}</title>{''.join(parts)}</svg>"
    )


def sample(number: int) -> str:
    """The line of a chart's ``number``-th series, for its legend."""
    return f'<svg class="sample" viewBox="0 0 28 6" aria-hidden="true">{_stroke(number, "M0 3H28")}</svg>'


def _stroke(number: int, path: str) -> str:
    dashes = _DASHES[number % len(_DASHES)]
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<path class="line line{number % 3}"{dashed} d="{path}"/>'


def picture(tokens: TokenMap) -> str:
    """The image's tokens: a square where one differs, larger the more of its channels do; a few are circled."""
    height, width = len(tokens.rows), len(tokens.rows[0])
    cells: dict[int, list[str]] = {}
    for row, column in tokens.differing:
        ninths = tokens.rows[row][column]
        side = 0.44 + ninths / 18
        inset = (1 - side) / 2
        cells.setdefault(ninths, []).append(
            f"M{column + inset:.2f} {row + inset:.2f}h{side:.2f}v{side:.2f}h-{side:.2f}z"
        )
    parts = [
        f'<path fill-opacity="{0.6 + 0.4 * n / 9:.2f}" d="{"".join(paths)}"/>' for n, paths in sorted(cells.items())
    ]
    ring = max(width, height) / 24 + 0.6
    if len(tokens.differing) <= 8:
        parts += [f'<circle cx="{c + 0.5}" cy="{r + 0.5}" r="{ring:.2f}"/>' for r, c in tokens.differing]
    title = html_text(f"{len(tokens.differing)} of {height * width} tokens with other bytes in {tokens.what}")
    margin = ring
    return (
        f'<svg class="map" viewBox="{-margin:.2f} {-margin:.2f} {width + 2 * margin:.2f} {height + 2 * margin:.2f}" '
        f'role="img" aria-label="{title}"><title>{title}</title>'
        f'<rect class="frame" width="{width}" height="{height}"/>{"".join(parts)}</svg>'
    )


def _line(points: Sequence[tuple[float, float] | None]) -> str:
    """A path that is broken where there is no point; a lone point is drawn as a short dash."""
    words = []
    for i, point in enumerate(points):
        if point is not None:
            before = points[i - 1] if i else None
            words.append(f"{'L' if before else 'M'}{point[0]:.1f} {point[1]:.1f}" + ("" if before else "h.1"))
    return "".join(words)


def _power(decade: int) -> str:
    return f"{10**decade:,}" if decade < 5 else f'10<tspan dy="-4" font-size="8">{decade}</tspan>'
