"""Which settings must match across ranks: what changes bits first, what does not in a line, its rows on demand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from verify.report.headed import headed, listed
from verify.report.tables import Section, Table, shown

Document = Mapping[str, Any]

_BITWISE = "bitwise"
# What a reader must act on comes first.
_ORDER = ("differs", "within", "unknown")
_KEYS = ("subject", "condition", "dtype", "verdict", "worst", "variants", "max_ulp", "mismatched", "of")
_HEADINGS = ["subject", "condition", "dtype", "verdict", "worst case", "variants", "max ULP", "differ", "of", "note"]


def envelope_section(d: Document) -> Section:
    """Rows that differ, lie within a bound or are unknown; for the others a sentence a subject and dtype."""
    rows = listed(d, "rows")
    telling = [row for row in rows if row["verdict"] != _BITWISE and row.get("applies", True)]
    telling.sort(key=lambda row: _ORDER.index(row["verdict"]) if row["verdict"] in _ORDER else len(_ORDER))
    tables = [_table(telling, "settings that change bits, or may")] if telling else []
    others = [row for row in rows if row not in telling]
    tables += [_table(others, f"the other {len(others)} rows", folded=True)] if others else []
    sentences = [*_bitwise(rows), *_missing(rows)]
    return headed(d, "Which settings must match across ranks", tables, sentences, d.get("notes", ()))


def _bitwise(rows: Sequence[Document]) -> list[str]:
    conditions: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row["verdict"] == _BITWISE:
            conditions.setdefault((row["subject"], row["dtype"]), []).append(row["condition"])
    return [
        f"{subject} in {dtype}: every byte is the same under {len(names)} conditions: {', '.join(names)}"
        for (subject, dtype), names in conditions.items()
    ]


def _missing(rows: Sequence[Document]) -> list[str]:
    reasons = dict.fromkeys(
        f"{row['condition']} ({row['note']})"
        for row in rows
        if row["verdict"] == "unknown" and not row.get("applies", True)
    )
    return [f"not measured: {', '.join(reasons)}"] if reasons else []


def _table(rows: Sequence[Document], caption: str, folded: bool = False) -> Table:
    cells = []
    for row in rows:
        said = "; ".join(str(row[key]) for key in ("note", "explanation") if row.get(key))
        cells.append([*(shown(row[key]) if row[key] != "" else "-" for key in _KEYS), said])
    return Table(_HEADINGS, cells, caption, folded)
