"""A run as Markdown, for a pull request: GitHub's job summary, Buildkite's annotation."""

from __future__ import annotations

from verify.report.console import closing, header
from verify.report.document import RunReport, build_document
from verify.report.message import failure_text, rank_failure_text
from verify.report.sections import section_of
from verify.report.tables import markdown_code, markdown_table, markdown_text
from verify.verdict import Verdict

_SHAPES = {Verdict.PASS: "✓", Verdict.FAIL: "✗", Verdict.UNKNOWN: "?"}


def run_markdown(report: RunReport) -> str:
    """Verdict first, then the checks, every failure, the command and the environment."""
    section = section_of(build_document(report))
    parts = [
        f"## {_SHAPES[report.verdict]} {report.verdict}\n",
        markdown_text(header(report).replace("\n", "; ")) + "\n",
    ]
    parts += [f"Note: {markdown_text(note)}\n" for note in report.notes]
    parts += [markdown_table(table) for table in section.tables]
    parts += [_fenced(failure_text(f)) for f in report.findings if f.verdict is not Verdict.PASS]
    if report.failure is not None:
        parts.append(_fenced(rank_failure_text(report.failure)))
    if report.command:
        parts.append(f"To see it again: {markdown_code(report.command)}\n")
    parts.append(f"{markdown_text(section.environment)}; {markdown_text(closing(report))}\n")
    return "\n".join(parts)


def _fenced(text: str) -> str:
    """A code block that its text cannot close."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}text\n{text}\n{fence}\n"
