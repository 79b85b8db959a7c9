"""A presentation on a terminal, or in a log. Words and shapes carry the meaning; colour only repeats it."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Literal

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as Grid
from rich.text import Text

from verify.report.message import reproduce_line
from verify.report.sections.blocks import (
    MARKS,
    Block,
    Bullets,
    Card,
    Cell,
    Command,
    Message,
    Paragraph,
    Presentation,
    Table,
)
from verify.text import literal
from verify.verdict import Verdict

# A log has no width of its own; lines longer than this are no longer read as rows.
_WIDEST = 160
_STYLES = {Verdict.PASS: "green", Verdict.FAIL: "bold red", Verdict.UNKNOWN: "yellow", Verdict.EXPLAINED: "green"}


Detail = Literal["quiet", "usual", "verbose"]


def print_presentation(shown: Presentation, console: Console, detail: Detail = "usual") -> None:
    """Prints what was run, the tables, every failure, and last the verdict.

    Args:
        shown: what there is to print.
        console: where to.
        detail: ``quiet`` leaves all but failures and verdict out; ``verbose`` prints what is folded too, and what else
            only the page has.
    """
    quiet, verbose = detail == "quiet", detail == "verbose"
    blocks = [block for section in shown.sections if verbose or not section.page_only for block in section.blocks]
    told_whole = any(isinstance(block, Message) for block in blocks)
    if quiet:
        blocks = [block for block in blocks if isinstance(block, (Message, Command, Card))]
    else:
        for line in filter(None, [shown.heading, *shown.subject, shown.made if shown.heading else ""]):
            say(console, line)
        for note in shown.notes:
            say(console, f"note: {note}")
    for block in blocks:
        if not (isinstance(block, Card) and told_whole):
            print_block(block, console, verbose)
    if told_whole and shown.command and not any(isinstance(block, Command) for block in blocks):
        say(console, f"\n{reproduce_line(shown.command).strip()}")
    if shown.said and shown.heading:
        say(console, shown.said if quiet else f"\n{shown.said}")
    if shown.verdict is not None:
        closing = f"{_mark(shown.verdict, console)}; {shown.closing}"
        say(console, closing if shown.heading or not blocks else f"\n{closing}", _STYLES[shown.verdict])
    elif shown.closing:
        say(console, shown.closing)


def print_block(block: Block, console: Console, verbose: bool = False) -> None:
    """Prints a block; pictures have no form here, and what is folded only where ``verbose``."""
    match block:
        case Table(folded=True) if not verbose:
            pass
        case Table():
            if block.caption:
                say(console, f"\n{block.caption}")
            _print_table(block, console)
        case Paragraph(text):
            say(console, text)
        case Bullets(sentences):
            for sentence in sentences:
                say(console, sentence)
        case Message():
            say(console, f"\n{block.text}")
        case Command(text):
            say(console, f"\n{reproduce_line(text).strip()}")
        case Card():
            lines = [block.title, *(f"  {name}: {value}" for name, value in block.facts)]
            lines += [f"  usually: {block.means}"] if block.means else []
            lines += [reproduce_line(block.command)] if block.command else []
            say(console, "\n" + "\n".join(lines) + "\n")


def _print_table(table: Table, console: Console) -> None:
    """Prints a table whole where it fits, else without its minor columns, else as a list: no cell is cut or broken."""
    widest = console.width if console.is_terminal or "COLUMNS" in os.environ else max(console.width, _WIDEST)
    kept = [i for i, heading in enumerate(table.headings) if heading not in table.minor]
    narrow = replace(
        table, headings=[table.headings[i] for i in kept], rows=[[row[i] for i in kept] for row in table.rows]
    )
    for lines in (1, 2):
        for candidate in (table, narrow) if lines == 1 else (narrow,):
            grid = _grid(candidate, console, lines)
            width = Measurement.get(console, console.options.update(max_width=10**6), grid).maximum
            if width <= widest:
                before, console.width = console.width, max(console.width, width)
                try:
                    console.print(grid)
                finally:
                    console.width = before
                return
    _print_list(table, console)


def _grid(table: Table, console: Console, lines: int) -> Grid:
    grid = Grid(show_edge=False, pad_edge=False, header_style="bold")
    rows = [[_cell(cell, console, "\n" if lines > 1 else " ") for cell in row] for row in table.rows]
    for i, heading in enumerate(table.headings):
        # Where a verdict takes two lines, so may the name of its loop.
        judges = lines > 1 and any(isinstance(cell := row[i], Cell) and cell.verdict for row in table.rows)
        widest = max((cell.cell_len for row in rows for cell in row[i].split()), default=1) if judges else None
        justify: Literal["left", "right"] = "right" if table.right(i) else "left"
        if widest is not None and len(heading) > 2 * widest:
            judges, widest = False, None
        grid.add_column(_encoded(heading, console), justify=justify, no_wrap=not judges, width=widest, overflow="fold")
    for row in rows:
        grid.add_row(*row)
    return grid


def _print_list(table: Table, console: Console) -> None:
    """A paragraph a row: its first cell, then every other one under its heading."""
    for row in table.rows:
        console.print(_cell(row[0], console), soft_wrap=True)
        for heading, cell in zip(table.headings[1:], row[1:], strict=True):
            said = _cell(cell, console)
            if said.plain:
                console.print(_encoded(f"  {heading + ': ' if heading else ''}", console) + said, soft_wrap=True)


def _cell(cell: str | Cell, console: Console, between: str = " ") -> Text:
    if isinstance(cell, str):
        return _encoded(cell, console)
    if cell.verdict is None:
        return _encoded(cell.text, console)
    words = [_mark(cell.verdict, console), *([literal(cell.text, line_breaks=False)] if cell.text else [])]
    return _encoded(between.join(words), console, _STYLES[cell.verdict], line_breaks=True)


def say(console: Console, text: str, style: str = "") -> None:
    """Prints ``text`` as it stands: a loop may be called ``[bold]``, and a terminal may know only ASCII."""
    console.print(_encoded(text, console, style, line_breaks=True), soft_wrap=True)


def _mark(verdict: Verdict, console: Console) -> str:
    """A shape and a word; the word alone where there are no shapes."""
    return MARKS[verdict].split()[-1] if console.options.ascii_only else MARKS[verdict]


def _encoded(text: str, console: Console, style: str = "", line_breaks: bool = False) -> Text:
    shown = literal(text, line_breaks)
    return Text(shown.encode(console.encoding, "backslashreplace").decode(console.encoding), style)
