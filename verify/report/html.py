"""One self-contained page: verdict first, then the checks, agreement at a glance, what differs, and on what it ran."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from verify.report import environment, evidence, svg
from verify.report.console import closing, header
from verify.report.document import RunReport
from verify.report.evidence import Grid
from verify.report.message import failure_text, rank_failure_text
from verify.report.tables import Section, Table, html_table, html_text
from verify.verdict import Finding, Verdict

_MOST_SERIES = 6
_LEGEND = (
    '<p class="faint">A bar a step. Low: every byte is the same. Tall: bytes differ, the taller the more of those '
    "compared with. A speck: not compared.</p>"
)
_MOST_STEPS_IN_A_TABLE = 200
_WORDS = {Verdict.PASS: "Pass", Verdict.FAIL: "Fail", Verdict.UNKNOWN: "Unknown: it could not be judged"}


def run_page(report: RunReport) -> str:
    """The report of a run as a page that needs no other file."""
    troubled = [finding for finding in report.findings if finding.verdict is not Verdict.PASS]
    grids = evidence.grids(report)
    parts = [_verdict(report), *(f'<p class="note">{html_text(note)}</p>' for note in report.notes)]
    if report.failure is not None:
        parts += ["<h2>Why it did not finish</h2>", _pre(rank_failure_text(report.failure))]
    if report.findings:
        parts += ["<h2>Checks</h2>", _checks(report.findings)]
    if grids:
        parts += ["<h2>Agreement, step by step</h2>", _LEGEND, f'<div class="grids">{"".join(map(_grid, grids))}</div>']
    if troubled:
        parts += ["<h2>What differs</h2>" if report.verdict is Verdict.FAIL else "<h2>What could not be judged</h2>"]
        shown: set[str] = set()
        parts += [_trouble(report, finding, shown) for finding in troubled]
    if report.command:
        parts += ["<h2>To see it again</h2>", _pre(report.command)]
    parts += ["<h2>Environment</h2>", _environment(report.environment), _work(report)]
    return _page(f"{report.verdict}: {report.target} {report.request.get('preset', '')}", parts)


def section_page(section: Section) -> str:
    """Any other document as such a page."""
    parts = [_heading(section), _pre(section.command)]
    parts += [f'<p class="note">{html_text(note)}</p>' for note in section.notes]
    # What may be said comes before what it is said of.
    said = "".join(f"<li>{html_text(sentence)}</li>" for sentence in section.sentences)
    parts += [f"<ul>{said}</ul>"] if said else []
    drawn = "".join(
        f"<figure><figcaption>{html_text(bars.title)}</figcaption>{svg.bars(bars)}</figure>" for bars in section.bars
    )
    parts += [f'<div class="figures">{drawn}</div>'] if drawn else []
    parts += [html_table(table) for table in section.tables]
    return _page(section.title, parts)


def _heading(section: Section) -> str:
    """The title; of what judges something, with its verdict's colour and shape."""
    environment = f'<p class="faint">{html_text(section.environment)}</p>'
    if section.verdict not in list(Verdict):
        return f"<header><h1>{html_text(section.title)}</h1>{environment}</header>"
    mark = svg.mark(Verdict(section.verdict))
    title = f"<h1>{mark}{html_text(section.title)}</h1>"
    return f'<header class="verdict {section.verdict}">{title}{environment}</header>'


def _page(title: str, parts: Sequence[str]) -> str:
    style = resources.files("verify.report").joinpath("page.css").read_text(encoding="utf-8")
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html_text(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _verdict(report: RunReport) -> str:
    what = "".join(f'<p class="faint">{html_text(line)}</p>' for line in header(report).splitlines())
    return (
        f'<header class="verdict {report.verdict}"><h1>{svg.mark(report.verdict)}{_WORDS[report.verdict]}</h1>'
        f"<p>{html_text(_in_short(report))}</p>{what}</header>"
    )


def _in_short(report: RunReport) -> str:
    if report.failure is not None and report.verdict is Verdict.UNKNOWN:
        return f"{report.failure['task']}: {report.failure['cause']}"
    if report.verdict is Verdict.PASS:
        agreed = next(
            (f" {f.summary[0].upper()}{f.summary[1:]}." for f in report.findings if f.name == "ranks_agree"), ""
        )
        return f"All {len(report.findings)} checks passed.{agreed}"
    for finding in report.findings:
        if finding.verdict is report.verdict:
            return finding.summary
    return "Nothing was judged."


def _trouble(report: RunReport, finding: Finding, shown: set[str]) -> str:
    """One finding; what an earlier one has already ``shown`` of the same loop is not told again."""
    heading = f"<h3>{_word(finding.verdict)} {html_text(finding.name)} ({html_text(finding.loop)})</h3>"
    figures = [*_growth(finding), *_map(report, finding)]
    new = [part for part in (_location(finding.data.get("location")), *figures) if finding.loop + part not in shown]
    shown.update(finding.loop + part for part in new)
    location = "".join(part for part in new if part not in figures)
    drawn = "".join(part for part in new if part in figures)
    pictures = f'<div class="figures">{drawn}</div>' if drawn else ""
    return f"<article>{heading}{_pre(failure_text(finding))}{location}{pictures}{_numbers(finding)}</article>"


def _location(location: Any) -> str:
    if not isinstance(location, Mapping):
        return ""
    names = {
        "tensor": "first tensor",
        "operator": "operator",
        "module": "module",
        "layer": "layer",
        "rank": "rank",
        "step": "step",
    }
    rows = [
        f"<dt>{name}</dt><dd>{html_text(str(location[key]))}</dd>"
        for key, name in names.items()
        if location.get(key) not in (None, "")
    ]
    return f"<h4>Where in the step it begins</h4><dl>{''.join(rows)}</dl>"


def _growth(finding: Finding) -> list[str]:
    series = evidence.growth(finding)[:_MOST_SERIES]
    if not series:
        return []
    legend = "".join(f"<br>{svg.sample(i)}{html_text(s.label)}" for i, s in enumerate(series))
    charts: list[tuple[str, list[tuple[str, tuple[int | None, ...]]]]]
    charts = [("elements that differ", [(s.label, s.mismatched) for s in series])]
    if any(value is not None for s in series for value in s.max_ulp):
        charts.append(("greatest distance, ULP", [(s.label, s.max_ulp) for s in series]))
    return [
        f"<figure><figcaption>{title}{legend}</figcaption>{svg.chart(title, lines)}</figure>" for title, lines in charts
    ]


def _map(report: RunReport, finding: Finding) -> list[str]:
    tokens = evidence.token_map(report, finding)
    if tokens is None or not tokens.differing:
        return []
    rows, columns = len(tokens.rows), len(tokens.rows[0])
    row, column = tokens.differing[0]
    said = (
        f"{len(tokens.differing)} of {rows * columns} tokens with other bytes in {tokens.what}, on the image's grid of "
        f"{rows} by {columns}; the first lies in row {row}, column {column}"
    )
    return [f"<figure><figcaption>{html_text(said)}</figcaption>{svg.picture(tokens)}</figure>"]


def _numbers(finding: Finding) -> str:
    series = evidence.growth(finding)[:_MOST_SERIES]
    if not series:
        return ""
    steps = [
        s for s in range(max(len(each.mismatched) for each in series)) if any(_at(e.mismatched, s) for e in series)
    ]
    headings = ["step", *(f"{what}, {s.label}" for s in series for what in ("elements", "ULP"))]
    rows = [
        [str(step), *(_cell(_at(values, step)) for s in series for values in (s.mismatched, s.max_ulp))]
        for step in steps[:_MOST_STEPS_IN_A_TABLE]
    ]
    return f"<details><summary>The numbers</summary>{html_table(Table(headings, rows))}</details>"


def _at(values: Sequence[int | None], step: int) -> int | None:
    return values[step] if step < len(values) else None


def _cell(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _checks(findings: Sequence[Finding]) -> str:
    loops = list(dict.fromkeys(finding.loop for finding in findings if finding.loop != "*")) or ["*"]
    by_name: dict[str, dict[str, Finding]] = {}
    for finding in findings:
        by_name.setdefault(finding.name, {})[finding.loop] = finding
    head = "".join(f'<th scope="col">{_breakable(loop)}</th>' for loop in loops)
    rows = []
    for name, row in by_name.items():
        cells = "".join(f"<td>{_judgement(row.get(loop, row.get('*')))}</td>" for loop in loops)
        steps = min(finding.compared.steps for finding in row.values())
        elements = sum(finding.compared.elements for finding in row.values())
        rows.append(
            f'<tr><th scope="row">{html_text(name)}</th>{cells}<td class="number">{steps}</td>'
            f'<td class="number">{elements:,}</td></tr>'
        )
    return (
        f'<div class="scroll"><table><thead><tr><th scope="col">check</th>{head}'
        '<th scope="col" class="number">steps</th>'
        f'<th scope="col" class="number">elements</th></tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def _breakable(name: str) -> str:
    """A name that may go on in the next line after punctuation: names of users' loops are long and phones narrow."""
    return "<wbr>".join(html_text(part) for part in re.split(r"(?<=[._:/-])", name))


def _judgement(finding: Finding | None) -> str:
    if finding is None:
        return ""
    step = finding.first_divergence.step if finding.first_divergence else None
    where = "" if step is None else " before step 0" if step < 0 else f" step {step}"
    return f'<span title="{html_text(finding.summary)}">{_word(finding.verdict, where)}</span>'


def _word(verdict: Verdict, where: str = "") -> str:
    return f'<span class="word {verdict}">{svg.mark(verdict)} {verdict}{where}</span>'


def _grid(grid: Grid) -> str:
    loop = "" if grid.loop == "*" else f"{html_text(grid.loop)}: "
    strips = "".join(
        f'<div class="rank"><span>{html_text(s.label)}</span><span class="said">{html_text(s.said)}</span>'
        f"{svg.strip(s)}</div>"
        for s in grid.strips
    )
    steps = max((len(s.states) for s in grid.strips), default=0)
    axis = f'<div class="axis"><span>step 0</span><span>step {max(0, steps - 1)}</span></div>'
    return f"<section><h3>{_word(grid.verdict)} {loop}{html_text(grid.what)}</h3>{strips}{axis}</section>"


def _environment(ranks: Sequence[Mapping[str, Any]]) -> str:
    rows = environment.rows(ranks)
    if not rows:
        return "<p>No rank reported what it ran on.</p>"
    differing = sum(row.matters for row in rows)
    said = "nothing that can change bits differs between ranks"
    if differing:
        properties = "property differs" if differing == 1 else "properties differ"
        said = f"{differing} {properties} between ranks and can change bits"
    head = "".join(f'<th scope="col">rank {html_text(str(rank.get("rank", i)))}</th>' for i, rank in enumerate(ranks))
    body = []
    for row in rows:
        name = html_text(row.name) + (
            ' <span class="faint">(may differ)</span>' if row.differs and not row.matters else ""
        )
        if row.differs:
            cells = "".join(f"<td>{html_text('not set' if value is None else value)}</td>" for value in row.values)
        else:
            cells = f'<td colspan="{len(ranks)}">{html_text(row.values[0] or "")}</td>'
        body.append(f'<tr{" class=differs" if row.matters else ""}><th scope="row">{name}</th>{cells}</tr>')
    return (
        f"<p>{html_text(environment.one_line(ranks))}; {said}.</p><details{' open' if differing else ''}>"
        f'<summary>Rank beside rank</summary><div class="scroll"><table><thead><tr><th scope="col">property</th>{head}'
        f"</tr></thead><tbody>{''.join(body)}</tbody></table></div></details>"
    )


def _work(report: RunReport) -> str:
    parts = ["<h2>Collectives and time</h2>"]
    if report.collectives:
        names = list(dict.fromkeys(name for counts in report.collectives.values() for name in counts))
        rows = [[loop, *(str(counts.get(name, 0)) for name in names)] for loop, counts in report.collectives.items()]
        parts.append(html_table(Table(["loop, on rank 0", *names], rows)))
    parts.append(f"<p>{html_text(closing(report))}</p>")
    return "".join(parts)


def _pre(text: str) -> str:
    return "<pre>" + "\n".join(map(html_text, text.split("\n"))) + "</pre>"
