"""Which settings must match across ranks, for people: what changes bits first."""

from __future__ import annotations

from collections.abc import Sequence

from verify.report.documents.fuzz import Condition, Envelope
from verify.report.sections.blocks import Block, Bullets, Card, Cell, Presentation, Section, Table, shown
from verify.report.sections.plain import present

# What a reader must act on comes first.
_ORDER = ("differs", "within", "unknown", "bitwise")
_ULPS = "ULPs are those of each element: where guidance nearly cancels, a small element is many of its own off."


def present_envelope(d: Envelope) -> Presentation:
    """The settings that must match, why, and every row."""
    changing = sorted((r for r in d.rows if r.verdict in _ORDER[:2]), key=lambda r: _ORDER.index(r.verdict))
    unknown = [r for r in d.rows if r.verdict == "unknown" and r.applies]
    sections = []
    if changing:
        conditions = dict.fromkeys(r.condition for r in changing)
        facts = [(c, _in_short([r for r in changing if r.condition == c])) for c in conditions]
        sections.append(Section("What must match across ranks", [Card("These settings change bits", facts)]))
        why = dict.fromkeys(f"{r.condition} ({r.subject}): {r.explanation}" for r in changing if r.explanation)
        detail: list[Block] = [_table(changing, "settings that change bits"), Bullets([_ULPS, *why])]
        sections.append(Section("How much they change, and why", detail))
    same = [r for r in d.rows if r.verdict == "bitwise"]
    told = [*_bitwise(same), *_missing(d.rows)]
    others: list[Block] = [Bullets(told)] if told else []
    others += [_table(rest, f"the other {len(rest)} rows", folded=True)] if (rest := [*unknown, *same]) else []
    if others:
        sections.append(Section("What may differ, and what was not measured", others))
    said = "Settings that change bits must be alike on every rank. " if changing else ""
    said += f"{len(changing)} of {len(d.rows)} measurements show other bytes; {len(same)} show the same bytes" + (
        f"; {len(unknown)} are unknown" if unknown else ""
    )
    title = f"Which settings must match across ranks, on {d.device}"
    return present(d, title, said, sections, subject=[f"forward pass of {d.preset}"], timings=d.timings)


def _in_short(rows: Sequence[Condition]) -> str:
    """What one condition changes: by subject, then by how much, the dtypes."""
    told: dict[str, dict[str, list[str]]] = {}
    for r in rows:
        how = f"within {r.max_ulp} ULP" if r.verdict == "within" else "other bytes"
        told.setdefault(r.subject, {}).setdefault(how, []).append(r.dtype)
    return "; ".join(
        f"{subject}: " + ", ".join(f"{how} in {', '.join(dtypes)}" for how, dtypes in hows.items())
        for subject, hows in told.items()
    )


def _bitwise(rows: Sequence[Condition]) -> list[str]:
    conditions: dict[tuple[str, str], list[str]] = {}
    for r in rows:
        conditions.setdefault((r.subject, r.dtype), []).append(r.condition)
    return [
        f"{subject} in {dtype}: every byte is the same under {len(names)} conditions: {', '.join(names)}"
        for (subject, dtype), names in conditions.items()
    ]


def _missing(rows: Sequence[Condition]) -> list[str]:
    reasons = dict.fromkeys(f"{r.condition} ({r.note})" for r in rows if r.verdict == "unknown")
    return [f"not measured: {', '.join(reasons)}"] if reasons else []


def _table(rows: Sequence[Condition], caption: str, folded: bool = False) -> Table:
    headings = ["condition", "subject", "dtype", "result", "worst case", "variants", "max ULP", "differ", "of",
                "relative"]  # fmt: skip
    cells: list[list[str | Cell]] = [
        [Cell(r.condition, note=r.note), r.subject, r.dtype, r.verdict, r.worst or "-",
         *map(shown, (r.variants, r.max_ulp, r.mismatched, r.of)), "-" if r.relative is None else f"{r.relative:.2g}"]
        for r in rows
    ]  # fmt: skip
    return Table(headings, cells, caption, folded, minor=headings[4:])
