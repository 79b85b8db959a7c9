"""The fault matrix for people."""

from __future__ import annotations

from verify.report.documents.faults import Faults, Injected
from verify.report.sections.blocks import Card, Cell, Presentation, Section, Table, shown
from verify.report.sections.plain import present
from verify.verdict import Verdict


def present_faults(d: Faults) -> Presentation:
    """Each fault that was missed or misplaced, as a card; then all of them."""
    faults = [row for row in d.faults if row.expected is not None]
    wrong = [row for row in d.faults if not (row.caught and row.placed)]
    caught, placed = sum(row.caught for row in faults), sum(row.placed for row in faults)
    controls = [row for row in d.faults if row.expected is None]
    clean = "".join(f", the clean control {'passed' if row.caught else 'did not pass'}" for row in controls)
    sections = [Section("What was not caught where it was injected", [_card(row, d) for row in wrong])] if wrong else []
    headings = ["fault", "the suite's result", "the loop's verdict", "check that fired", "step: found / injected",
                "rank: found / injected", "s", "seen at"]  # fmt: skip
    rows = [[Cell(row.fault, note=row.summary), *_row(row)] for row in d.faults]
    minor = ("the loop's verdict", "step: found / injected", "rank: found / injected", "s", "seen at")
    sections.append(Section("All faults", [Table(headings, rows, minor=minor)]))
    said = f"{caught} of {len(faults)} faults caught, {placed} placed{clean}"
    title = f"Faults injected on {d.world_size} ranks on {d.device}"
    return present(d, title, said, sections, d.verdict, timings={"total": d.seconds})


def _result(row: Injected) -> Cell:
    if row.caught and row.placed:
        return Cell("", Verdict.PASS)
    if row.expected is None:
        return Cell("false alarm", Verdict.FAIL)
    return Cell("caught, not placed" if row.caught else "missed", Verdict.FAIL)


def _row(row: Injected) -> list[str | Cell]:
    named = ["", ""]
    if row.expected is not None:
        rank = "every" if row.expected.rank is None else str(row.expected.rank)
        named = [f"{shown(row.step)} / {shown(row.expected.step)}", f"{shown(row.rank)} / {rank}"]
    return [_result(row), str(row.verdict), ", ".join(row.fired[:1]), *named, f"{row.seconds:.1f}", row.source]


def _card(row: Injected, d: Faults) -> Card:
    """A fault that the suite did not judge right, with what it should have said and the command that shows it."""
    facts = [("what", row.summary), ("verdict", str(row.verdict)),
             ("checks that fired", ", ".join(row.fired) or "none")]  # fmt: skip
    if row.expected is not None:
        e = row.expected
        stuck = f", stuck in {e.collective}" if e.collective else ""
        facts.append(("expected", f"{e.check} at step {shown(e.step)} on rank {shown(e.rank)}{stuck}"))
        facts.append(("found", f"step {shown(row.step)}, rank {shown(row.rank)}"))
    facts += [("message", row.message)] if row.message else []
    only = "" if row.expected is None or " --only " in d.command else f" --only {row.fault}"
    facts += [("next step", "add or mend the check that must see it")] if row.expected is not None else []
    return Card(f"{row.fault}: {_result(row).text}", facts, command=d.command + only)
