"""Fuzz results on a terminal, or in a log."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from verify.fuzz.session import FuzzReport
from verify.report.message import failure_text, rank_failure_text
from verify.verdict import Verdict

MARKS = {
    Verdict.PASS: ("✓ pass", "green"),
    Verdict.FAIL: ("✗ FAIL", "bold red"),
    Verdict.UNKNOWN: ("? unknown", "yellow"),
}


def say(console: Console, text: str) -> None:
    """Prints text literally."""
    console.print(Text(text), soft_wrap=True)


def print_fuzz(report: FuzzReport, console: Console) -> None:
    """One row a property; then each failure with what reproduces it; then the verdict."""
    job = report.job
    say(
        console,
        f"fuzz {job.combine}: {report.cases:,} cases, seed {job.seed}, {job.world_size} ranks over "
        f"{report.backend or job.backend or '?'} on {job.device}",
    )
    for note in report.notes:
        say(console, f"note: {note}")
    if report.findings:
        table = Table(show_edge=False, pad_edge=False)
        for heading in ("property", "", "cases", "elements"):
            table.add_column(heading, justify="right" if heading in ("cases", "elements") else "left")
        for finding in report.findings:
            compared = finding.compared
            table.add_row(finding.name, Text(*MARKS[finding.verdict]), f"{compared.steps:,}", f"{compared.elements:,}")
        console.print(table)
    for finding in report.findings:
        if finding.verdict is not Verdict.PASS:
            say(console, failure_text(finding, report.replays.get(finding.name, "")) + "\n")
        else:
            for detail in finding.details:
                say(console, f"note: {detail}")
    if report.failure is not None:
        say(console, rank_failure_text(report.failure, job.command) + "\n")
    total = report.timings.get("total", 0.0)
    rate = f", {report.cases_per_minute:,.0f} cases a minute with start-up" if report.cases > 1 else ""
    mark, style = MARKS[report.verdict]
    console.print(Text(mark, style), Text(f"exit status {report.exit_status} in {total:.1f} s{rate}"), soft_wrap=True)
