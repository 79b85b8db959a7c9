"""Who is at fault, as a card: of all that failed, what a reader should look at first."""

from __future__ import annotations

import math
from collections.abc import Sequence

from verify.checks.records import CHECKS
from verify.report.documents.parts import Check, Failure, FirstDivergence
from verify.report.message import distance, how_many, side_names, usual_cause_of_ending, usual_causes
from verify.report.sections.blocks import Card
from verify.report.sections.checks import at_step
from verify.report.sections.evidence import location
from verify.verdict import Verdict

_READING_ORDER = {name: number for number, name in enumerate(CHECKS)}
_ENVIRONMENT = "environments_agree"


def first_to_read(checks: Sequence[Check]) -> Check | None:
    """Of what did not pass: a failed environment, which explains the rest, or else the earliest failure."""
    troubled = [check for check in checks if not check.verdict.holds]
    return min(troubled, key=_urgency, default=None)


def _urgency(check: Check) -> tuple[bool, bool, float, int]:
    step = None if check.first_divergence is None else check.first_divergence.step
    order = _READING_ORDER.get(check.name, len(_READING_ORDER))
    failed = check.verdict is Verdict.FAIL
    return not failed, check.name != _ENVIRONMENT, math.inf if step is None else step, order


def named(check: Check) -> str:
    """A check's name with its loop."""
    return check.name if check.loop in ("", "*") else f"{check.name} ({check.loop})"


def check_card(check: Check, checks: Sequence[Check], command: str) -> Card:
    """One check that did not pass, and the names of the others."""
    found, first = location(check), check.first_divergence
    facts = []
    if found is not None:
        facts += [("rank", str(found.rank)), ("step", str(found.step)), ("tensor", found.tensor)]
        facts += [(name, said) for name, said in (("operator", found.operator), ("module", found.module)) if said]
    elif first is not None:
        a, b = first.ranks
        facts += [("rank", str(a) if a == b else f"{a} and {b}")]
        facts += [("step", "before step 0" if first.step < 0 else str(first.step))] if first.step is not None else []
        facts += [("tensor", first.tensor)]
    if first is not None:
        facts += _values(first)
    others = [named(other) for other in checks if other is not check and other.verdict is Verdict.FAIL]
    # Of several requests, the one that shows it.
    command = str(check.data.get("command", command))
    return Card(f"{named(check)} {at_step(check)}".strip(), facts, usual_causes(check), command, others)


def _values(first: FirstDivergence) -> list[tuple[str, str]]:
    if first.bits is None or first.numbers is None:
        return []
    facts = [("index", str(list(first.index)))] if first.index is not None else []
    a, b = first.numbers
    values = zip(side_names(first), first.bits, first.numbers, strict=True)
    facts += [(side, f"{value!r} ({bits})") for side, bits, value in values]
    apart = distance(first)
    if math.isfinite(a) and math.isfinite(b):
        relative = f", relative {abs(a - b) / abs(a):.3g}" if a else ""
        apart = f"absolute {abs(a - b):.3g}{relative}, {apart}"
    return [*facts, ("difference", apart), ("elements", how_many(first))]


def failure_card(failure: Failure, command: str) -> Card:
    """A run that some rank did not finish."""
    first = failure.ranks[0]
    title = f"rank {first.rank} {first.what}"
    facts = [] if failure.cause.startswith(title) else [("what", failure.cause)]
    facts += [("while running", failure.task), ("rank", str(first.rank))]
    facts += [("where", first.where)] if first.where else []
    facts += [("step", "before step 0" if first.step < 0 else f"{first.step} was the last that it finished")]
    facts += [("in", first.activity)] if first.activity else []
    return Card(title, facts, usual_cause_of_ending(failure), command)
