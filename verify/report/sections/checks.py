"""The table of checks: the one that every kind of document and every medium shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from verify.checks.records import CHECKS
from verify.report.documents.parts import Check
from verify.report.sections.blocks import Cell, Table

_CLAIMS = {name: record.claim for name, record in CHECKS.items()}


def checks_table(
    checks: Sequence[Check], what: str = "check", over: str = "steps", claims: Mapping[str, str] = _CLAIMS
) -> Table:
    """Checks downwards, loops across; then over how many steps each was compared, and elements in all loops.

    Args:
        checks: in the order to be shown.
        what: they are called.
        over: what ``compared.steps`` counts.
        claims: what each says, by name.
    """
    loops = list(dict.fromkeys(check.loop for check in checks if check.loop != "*")) or ["*"]
    by_name: dict[str, dict[str, Check]] = {}
    for check in checks:
        by_name.setdefault(check.name, {})[check.loop] = check
    rows = []
    for name, row in by_name.items():
        judged = [row.get(loop, row.get("*")) for loop in loops]
        steps = min(check.compared.steps for check in row.values())
        elements = sum(check.compared.elements for check in row.values())
        first = Cell(name, note=claims.get(name, ""))
        rows.append([first, *map(_judgement, judged), f"{steps:,}", f"{elements:,}"])
    headings = [what, *("" if loop == "*" else loop for loop in loops), over, "elements"]
    return Table(headings, rows, minor=(over, "elements"))


def _judgement(check: Check | None) -> Cell | str:
    return "" if check is None else Cell(where(check), check.verdict)


def where(check: Check) -> str:
    """The step at which a check broke, if it broke at one."""
    step = None if check.first_divergence is None else check.first_divergence.step
    return "" if step is None else "before step 0" if step < 0 else f"step {step}"


def at_step(check: Check) -> str:
    """The same as a part of a sentence."""
    said = where(check)
    return f"at {said}" if said.startswith("step") else said
