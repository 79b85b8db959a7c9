"""Sections of text and tables that are written as Markdown or as HTML."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from verify.text import literal

_NUMBER = re.compile(r"[-+]?[\d,]*\.?\d+( to [-+]?[\d.]+)?( ?%)?( \([-+]?[\d.]+ to [-+]?[\d.]+\))?|-|")
# What Markdown, or HTML inside it, would act on.
_SPECIAL = re.compile(r"([\\`*\[\]<>|~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")


@dataclass(frozen=True)
class Table:
    """Headings and rows of plain text; columns of numbers alone are set right.

    Attributes:
        headings: one a column.
        rows: one cell a column.
        caption: what it shows.
        folded: whether it is shown only to a reader who asks for it, under its caption.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    folded: bool = False

    def right(self, column: int) -> bool:
        """Whether the column holds numbers alone."""
        return bool(self.rows) and all(_NUMBER.fullmatch(row[column]) for row in self.rows)


@dataclass(frozen=True)
class Bars:
    """Measured values with their spread, to be drawn beside each other.

    Attributes:
        title: what they are, and what the spread is.
        unit: of the values.
        rows: label, least, middle and greatest of each.
    """

    title: str
    unit: str
    rows: Sequence[tuple[str, float, float, float]]


@dataclass(frozen=True)
class Section:
    """One document for people, all of it plain text.

    Attributes:
        title: what it is.
        command: what made it.
        environment: hardware and versions, in one line.
        notes: what a reader must know first.
        tables: the numbers.
        sentences: what may be said of them.
        verdict: pass, fail, unknown, or empty for what judges nothing.
        bars: the numbers that a picture shows better.
    """

    title: str
    command: str
    environment: str
    notes: Sequence[str] = ()
    tables: Sequence[Table] = ()
    sentences: Sequence[str] = field(default=())
    verdict: str = ""
    bars: Sequence[Bars] = ()


def markdown_text(text: str) -> str:
    """``text`` as Markdown shows it: no character of it is markup."""
    return _SPECIAL.sub(r"\\\1", literal(text, line_breaks=False).replace("&", "&amp;"))


def markdown_code(text: str) -> str:
    """``text`` as inline code, fenced by more backticks than it holds."""
    text = literal(text, line_breaks=False).replace("|", "\\|")
    runs = re.findall(r"`+", text)
    fence = "`" * (1 + max(map(len, runs), default=0))
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def markdown_table(table: Table) -> str:
    """A table in the form that GitHub and Buildkite show."""
    lines = [f"**{markdown_text(table.caption)}**\n"] if table.caption and not table.folded else []
    lines.append(_row([markdown_text(heading) for heading in table.headings]))
    lines.append(_row(["---:" if table.right(i) else "---" for i in range(len(table.headings))]))
    lines += [_row([markdown_text(cell) for cell in row]) for row in table.rows]
    if table.folded:
        # An empty line on either side, or what is between is no Markdown.
        lines = [f"<details><summary>{html_text(table.caption)}</summary>\n", *lines, "\n</details>"]
    return "\n".join(lines) + "\n"


def markdown_section(section: Section, level: int = 2) -> str:
    """A section with a heading of the given level."""
    parts = [f"{'#' * level} {markdown_text(section.title)}\n"]
    parts.append(f"{markdown_code(section.command)}  \n{markdown_text(section.environment)}\n")
    parts += [f"Note: {markdown_text(note)}\n" for note in section.notes]
    parts += [markdown_table(table) for table in section.tables]
    if section.sentences:
        parts.append("\n".join(f"- {markdown_text(said)}" for said in section.sentences) + "\n")
    return "\n".join(parts)


def html_text(text: str) -> str:
    """``text`` as HTML shows it: no character of it is markup, and none is hidden."""
    return html.escape(literal(text, line_breaks=False))


def html_table(table: Table) -> str:
    """A table that scrolls by itself where the page is too narrow for it."""
    caption = f"<caption>{html_text(table.caption)}</caption>" if table.caption else ""
    number = [' class="number"' if table.right(i) else "" for i in range(len(table.headings))]
    head = "".join(f'<th scope="col"{c}>{html_text(h)}</th>' for h, c in zip(table.headings, number, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{c}>{html_text(cell)}</td>" for cell, c in zip(row, number, strict=True)) + "</tr>\n"
        for row in table.rows
    )
    if table.folded:
        whole = html_table(Table(table.headings, table.rows))
        return f"<details><summary>{html_text(table.caption)}</summary>{whole}</details>\n"
    return f'<div class="scroll"><table>{caption}<thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>\n'


def shown(value: Any) -> str:
    """A JSON value as the text of a cell."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {shown(item)}" for key, item in value.items()) or "-"
    if isinstance(value, (list, tuple)):
        return ", ".join(shown(item) for item in value) or "-"
    return str(value)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
