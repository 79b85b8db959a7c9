"""The report on a terminal, or in a log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from verify.report.document import RunReport
from verify.report.message import failure_text
from verify.verdict import Finding, Verdict

# Words and shapes carry the meaning; colour only repeats it.
_MARKS = {Verdict.PASS: ("✓ pass", "green"), Verdict.FAIL: ("✗ FAIL", "bold red"), Verdict.UNKNOWN: ("? unknown", "yellow")}


def print_report(report: RunReport, console: Console) -> None:
    """Prints the verdict's evidence, then the verdict."""
    _plain(console, header(report))
    for note in report.notes:
        _plain(console, f"note: {note}")
    if report.findings:
        console.print(_table(report.findings))
    for finding in report.findings:
        if finding.verdict is not Verdict.PASS:
            _plain(console, failure_text(finding, report.command) + "\n")
    if report.failure is not None:
        _plain(console, rank_failure_text(report.failure, report.command) + "\n")
    mark, style = _MARKS[report.verdict]
    console.print(Text(mark, style), Text(closing(report)), soft_wrap=True)


def header(report: RunReport) -> str:
    """What was run, in one line."""
    r = report.request
    size = f"{r['height']}x{r['width']}"
    ranks = f"{report.world_size} rank{'s' * (report.world_size != 1)}"
    over = f" over {report.backend}" if report.backend else ""
    return (
        f"{report.target} {r.get('preset', '')} {size} {r.get('dtype', '')}: {ranks}{over} on {report.device}, "
        f"{report.steps} steps, {report.guided_steps} guided"
    )


def closing(report: RunReport) -> str:
    """The exit status and where the time went."""
    total = report.timings.get("total")
    parts = [f"{name} {seconds:.2f} s" for name, seconds in report.timings.items() if name != "total"]
    spent = "" if total is None else f" in {total:.1f} s ({', '.join(parts)})"
    return f"exit status {report.exit_status}{spent}"


def rank_failure_text(failure: Mapping[str, Any], command: str) -> str:
    """Why a run did not finish: the cause, then what became of each rank."""
    lines = [f"UNKNOWN {failure['task']}: {failure['cause']} ({failure['seconds']:.1f} s after it began)"]
    for r in failure["ranks"]:
        doing = f", in {r['activity']}" if r["activity"] else ""
        step = "before step 0" if r["step"] < 0 else f"last step {r['step']}"
        lines.append(f"  rank {r['rank']} {r['state']}: {r['what']} ({step}{doing})")
        for title, text in (("", r["trace"]), ("it printed:", r["output"])):
            if text.strip():
                lines += [f"    {line}" for line in ([title] if title else []) + text.strip().splitlines()[-25:]]
    if command:
        lines.append(f"  reproduce: {command}")
    return "\n".join(lines)


def _table(findings: Sequence[Finding]) -> Table:
    """Checks downwards, loops across."""
    loops = list(dict.fromkeys(finding.loop for finding in findings if finding.loop != "*"))
    table = Table(show_edge=False, pad_edge=False, header_style="bold")
    table.add_column("check", no_wrap=True)
    for loop in loops:
        table.add_column(Text(loop), no_wrap=True)
    table.add_column("compared", justify="right")
    by_name: dict[str, dict[str, Finding]] = {}
    for finding in findings:
        by_name.setdefault(finding.name, {})[finding.loop] = finding
    for name, row in by_name.items():
        cells = [_cell(row.get(loop, row.get("*"))) for loop in loops]
        elements = sum(finding.compared.elements for finding in row.values())
        table.add_row(Text(name), *cells, f"{elements:,}")
    return table


def _cell(finding: Finding | None) -> Text:
    if finding is None:
        return Text("")
    mark, style = _MARKS[finding.verdict]
    step = finding.first_divergence.step if finding.first_divergence else None
    return Text(mark if step is None else f"{mark} step {step}", style)


def _plain(console: Console, text: str) -> None:
    """Prints text literally: a loop may be called ``[bold]``."""
    console.print(Text(text), soft_wrap=True)
