"""The report on a terminal, or in a log."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as Grid
from rich.text import Text

from verify.report.document import RunReport
from verify.report.message import failure_text, rank_failure_text, reproduce_line
from verify.report.tables import Section
from verify.text import literal
from verify.verdict import Finding, Verdict

# Words and shapes carry the meaning; colour only repeats it.
_WIDEST = 160
_MARKS = {Verdict.PASS: "✓ pass", Verdict.FAIL: "✗ FAIL", Verdict.UNKNOWN: "? unknown"}
_STYLES = {Verdict.PASS: "green", Verdict.FAIL: "bold red", Verdict.UNKNOWN: "yellow"}


def print_report(report: RunReport, console: Console) -> None:
    """Prints what was run, what each check says of each loop, every failure, and last the verdict."""
    say(console, header(report))
    for note in report.notes:
        say(console, f"note: {note}")
    if report.findings:
        console.print(_table(report.findings, console))
    if report.collectives:
        say(console, _collectives(report))
    failures = [failure_text(finding) for finding in report.findings if finding.verdict is not Verdict.PASS]
    if report.failure is not None:
        failures.append(rank_failure_text(report.failure))
    for failure in failures:
        say(console, "\n" + failure)
    if failures and report.command:
        say(console, "\n" + reproduce_line(report.command).strip())
    say(console, f"\n{_mark(report.verdict, console)}; {closing(report)}", _STYLES[report.verdict])


def print_section(section: Section, console: Console) -> None:
    """Prints a document that is no run's: its notes, its tables, and what is said of them."""
    say(console, f"{section.title}\n{section.environment}")
    for note in section.notes:
        say(console, f"note: {note}")
    for table in section.tables:
        say(console, "\n" + table.caption if table.caption else "")
        drawn = Grid(show_edge=False, pad_edge=False, header_style="bold")
        for i, heading in enumerate(table.headings):
            drawn.add_column(_cell(heading, console), justify="right" if table.right(i) else "left", overflow="fold")
        for row in table.rows:
            drawn.add_row(*(_cell(cell, console) for cell in row))
        _print_whole(drawn, console)
    for said in section.sentences:
        say(console, said)


def _print_whole(table: Grid, console: Console) -> None:
    """Prints a table without folding its cells: numbers that are folded cannot be read, lines that are can."""
    before = console.width
    console.width = max(before, Measurement.get(console, console.options.update(max_width=_WIDEST), table).maximum)
    try:
        console.print(table)
    finally:
        console.width = before


def header(report: RunReport) -> str:
    """What was run, in two lines."""
    r = report.request
    words = [report.target, r.get("preset"), f"{r['height']}x{r['width']}", r.get("dtype")]
    guided_by = [name for name in ("text", "img") if r[f"cfg_{name}_scale"] > 1.0]
    guidance = f"guided by {' and '.join(guided_by)}" if guided_by else "not guided"
    ranks = f"{report.world_size} rank{'s' * (report.world_size != 1)}"
    if report.replicas:
        hosts = {host for replica in report.replicas for host in replica["hosts"]} - {"unknown"}
        ranks = f"{len(report.replicas)} replica{'s' * (len(report.replicas) != 1)} of {ranks}"
        ranks += f" on {len(hosts)} host{'s' * (len(hosts) != 1)}"
    over = f" over {report.backend}" if report.backend else ""
    return (
        f"{' '.join(str(word) for word in words if word)}, {guidance}\n"
        f"{ranks}{over} on {report.device}, {report.steps} steps, {report.guided_steps} guided"
    )


def closing(report: RunReport) -> str:
    """The exit status and where the time went."""
    total = report.timings.get("total")
    parts = [f"{name} {seconds:.2f} s" for name, seconds in report.timings.items() if name != "total"]
    spent = "" if total is None else f" in {total:.1f} s"
    return f"exit status {report.exit_status}{spent}" + (f" ({', '.join(parts)})" if parts else "")


def say(console: Console, text: str, style: str = "") -> None:
    """Prints ``text`` as it stands: a loop may be called ``[bold]``, and a terminal may know only ASCII."""
    console.print(Text(_encodable(literal(text), console), style), soft_wrap=True)


def _collectives(report: RunReport) -> str:
    counted = [
        f"{loop} {', '.join(f'{count} {name}' for name, count in counts.items()) or 'none'}"
        for loop, counts in report.collectives.items()
    ]
    return f"collectives on rank 0: {'; '.join(counted)}"


def _table(findings: Sequence[Finding], console: Console) -> Grid:
    """Checks downwards, loops across; then over how many steps each loop was compared, and elements in all loops."""
    loops = list(dict.fromkeys(finding.loop for finding in findings if finding.loop != "*")) or ["*"]
    by_name: dict[str, dict[str, Finding]] = {}
    for finding in findings:
        by_name.setdefault(finding.name, {})[finding.loop] = finding
    table = Grid(show_edge=False, pad_edge=False, header_style="bold")
    table.add_column("check", no_wrap=True)
    for loop in loops:
        # Names too long for the terminal go on in the next line; nothing is cut.
        table.add_column(_cell(loop, console), overflow="fold")
    table.add_column("steps", justify="right", no_wrap=True)
    table.add_column("elements", justify="right", no_wrap=True)
    for name, row in by_name.items():
        cells = [_judgement(row.get(loop, row.get("*")), console) for loop in loops]
        steps = min(finding.compared.steps for finding in row.values())
        elements = sum(finding.compared.elements for finding in row.values())
        table.add_row(_cell(name, console), *cells, f"{steps}", f"{elements:,}")
    return table


def _judgement(finding: Finding | None, console: Console) -> Text:
    if finding is None:
        return Text("")
    step = finding.first_divergence.step if finding.first_divergence else None
    where = "" if step is None else " before step 0" if step < 0 else f" step {step}"
    return _cell(_mark(finding.verdict, console) + where, console, _STYLES[finding.verdict])


def _mark(verdict: Verdict, console: Console) -> str:
    """A shape and a word; the word alone where there are no shapes."""
    return _MARKS[verdict].split()[-1] if console.options.ascii_only else _MARKS[verdict]


def _cell(text: str, console: Console, style: str = "") -> Text:
    return Text(_encodable(literal(text, line_breaks=False), console), style)


def _encodable(text: str, console: Console) -> str:
    return text.encode(console.encoding, "backslashreplace").decode(console.encoding)
