"""The fault matrix and the catalogue."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from verify.faults.registry import Fault
    from verify.faults.runner import Row


def print_matrix(rows: Sequence[Row], console: Console) -> None:
    """Fault, verdict, check that fired, step and rank named and injected, seconds."""
    table = Table(show_edge=False, pad_edge=False)
    for heading in ("fault", "verdict", "check that fired", "step", "rank", "s", ""):
        table.add_column(heading, justify="right" if heading in ("step", "rank", "s") else "left", overflow="fold")
    for row in rows:
        f = row.fault
        good = row.caught and row.placed
        table.add_row(
            Text(f.name if f else "clean control"),
            str(row.verdict),
            Text(", ".join(row.fired[:1]) or "none"),
            f"{_shown(row.step)}/{_shown(f.step)}" if f else "",
            f"{_shown(row.rank)}/{'all' if f.rank is None else f.rank}" if f else "",
            f"{row.seconds:.1f}",
            Text("✓", "green") if good else Text("✗ missed" if not row.caught else "✗ misplaced", "bold red"),
        )
    console.print(table)
    for row in rows:
        if not (row.caught and row.placed) and row.fault is not None:
            console.print(Text(f"{row.fault.name}: expected {row.fault.expected}; {row.message}"), soft_wrap=True)


def print_catalogue(faults: Iterable[Fault], console: Console) -> None:
    """Every fault with what it breaks, where it comes from and which check must catch it."""
    table = Table(show_edge=False, pad_edge=False)
    for heading in ("fault", "breaks", "what", "seen at", "caught by"):
        table.add_column(heading, overflow="fold")
    for f in faults:
        table.add_row(*(Text(cell) for cell in (f.name, f.breaks, f.summary, f.source, f.caught_by)))
    console.print(table)


def _shown(value: int | None) -> str:
    return "-" if value is None else str(value)
