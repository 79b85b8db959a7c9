"""A presentation as Markdown, for a pull request: GitHub's job summary, Buildkite's annotation."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from verify.report.sections.blocks import (
    MARKS,
    Block,
    Bullets,
    Card,
    Cell,
    Command,
    Fold,
    Message,
    Paragraph,
    Presentation,
    Table,
)
from verify.text import literal

# What Markdown, or HTML inside it, would act on.
_SPECIAL = re.compile(r"([\\`*\[\]<>|~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")


def markdown(shown: Presentation, level: int = 2) -> str:
    """The whole presentation under a heading of the given level: verdict first, then what is at fault."""
    mark = "" if shown.verdict is None else f"{MARKS[shown.verdict]}: "
    title = shown.title.removeprefix(f"{shown.verdict}: ")
    parts = [f"{'#' * level} {markdown_text(mark + title)}\n"]
    parts += [f"{markdown_text(line)}\n" for line in (shown.said, "; ".join(shown.subject)) if line]
    parts += [f"Note: {markdown_text(note)}\n" for note in shown.notes]
    for section in shown.sections:
        if not section.page_only and (blocks := [said for block in section.blocks if (said := _block(block))]):
            parts += [f"**{markdown_text(section.heading)}**\n", *blocks]
    parts += [f"Reproduce: {markdown_code(shown.command)}\n"] if shown.command else []
    parts.append(f"{markdown_text('; '.join(filter(None, (shown.made, shown.closing))))}\n")
    return "\n".join(parts)


def _block(block: Block) -> str:
    """A block; empty for pictures."""
    match block:
        case Table():
            return markdown_table(block)
        case Paragraph(text):
            return f"{markdown_text(text)}\n"
        case Bullets(sentences):
            return "".join(f"- {markdown_text(sentence)}\n" for sentence in sentences)
        case Message():
            return "\n".join([_fenced(block.short or block.text), *map(_fold, block.folds)])
        case Command(text):
            return f"Reproduce: {markdown_code(text)}\n"
        case Card():
            facts = [(name, value) for name, value in block.facts]
            facts += [("usually", block.means)] if block.means else []
            facts += [("also failed", ", ".join(block.others))] if block.others else []
            return markdown_table(Table([block.title, ""], facts))
    return ""


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
    lines = [f"*{markdown_text(table.caption)}*\n"] if table.caption and not table.folded else []
    lines.append(_row([markdown_text(heading) for heading in table.headings]))
    lines.append(_row(["---:" if table.right(i) else "---" for i in range(len(table.headings))]))
    lines += [_row([markdown_text(_cell(cell)) for cell in row]) for row in table.rows]
    if table.folded:
        return _details(table.caption, "\n".join(lines))
    return "\n".join(lines) + "\n"


def _cell(cell: str | Cell) -> str:
    if isinstance(cell, str) or cell.verdict is None:
        return cell if isinstance(cell, str) else cell.text
    return f"{MARKS[cell.verdict]} {cell.text}".rstrip()


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _fold(fold: Fold) -> str:
    return _details(fold.title, _fenced(fold.text))


def _details(title: str, body: str) -> str:
    # An empty line on either side, or what is between is no Markdown.
    summary = html.escape(literal(title, line_breaks=False))
    return f"<details><summary>{summary}</summary>\n\n{body}\n\n</details>\n"


def _fenced(text: str) -> str:
    """A code block that its text cannot close."""
    text, fence = literal(text), "```"
    while fence in text:
        fence += "`"
    return f"{fence}text\n{text}\n{fence}\n"
