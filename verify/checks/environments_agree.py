"""Claim: nothing that can change bits differs between ranks: neither code nor hardware, variables or settings.

Settings are compared as they were before the loop, in each step and after it, in the thread that ran the loop. What a
loop changes on every rank alike is told, and fails only where it changes whatever is computed afterwards: how the
processor rounds, and whether it keeps subnormal numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from verify.checks import conditions
from verify.checks.conditions import Change, Difference
from verify.checks.records import CHECKS
from verify.environment.conditions import AtStart, Conditions
from verify.environment.properties import Kind
from verify.environment.watch import AFTER
from verify.trace.trace import Trace
from verify.verdict import Compared, Divergence, Finding, Verdict

NAME = "environments_agree"
_MOST_NAMES = 12


def environments_agree(traces: Sequence[Trace]) -> Finding:
    """Compares every rank with the one that most others are like; with two ranks, rank 1 with rank 0."""
    loop, base = traces[0].loop, conditions.most_alike(traces)
    changed = conditions.changes(base)
    found = [
        (trace, difference)
        for trace in traces
        if trace is not base
        for difference in conditions.differences(base, trace)
    ]
    others = len(traces) - 1
    compared = Compared(base.steps, conditions.compared(base) * others)
    unexplained = conditions.unexplained(traces)
    notes = _notes(traces, unexplained)
    of_loop = [f"changed by the loop while running: {change}" for change in changed]
    data: dict[str, Any] = {"told": [*notes, *of_loop]} if notes or of_loop else {}
    if found:
        trace, first = found[0]
        details = [d.line(f"on rank {base.rank}", f"on rank {t.rank}") for t, d in found]
        summary, pair = _told(base.rank, trace.rank, first), (base.rank, trace.rank)
        divergence = Divergence(_step(first.step, first.moment), pair, f"environment, {first.name}")
        return Finding(NAME, loop, Verdict.FAIL, summary, compared, divergence, (*details, *notes), data)
    details = [f"changed by the loop on every rank alike: {change}" for change in changed if _is_told(change)]
    spoilt = [change for change in changed if change.kind is Kind.LEFT_ALONE]
    if spoilt:
        ranks = (traces[0].rank, traces[-1].rank)
        step = _step(spoilt[0].look.step, spoilt[0].look.moment)
        summary = f"the loop changes {spoilt[0].name}, on every rank alike: all that is computed then has other bits"
        divergence = Divergence(step, ranks, f"environment, {spoilt[0].name}")
        return Finding(NAME, loop, Verdict.FAIL, summary, compared, divergence, (*details, *notes), data)
    if not others:
        return Finding(NAME, loop, Verdict.UNKNOWN, "one rank has nobody to agree with")
    if not compared.elements:
        return Finding(NAME, loop, Verdict.UNKNOWN, "no rank said what it runs on", compared)
    summary = f"{conditions.compared(base)} properties equal on every rank"
    names = [change.name for change in changed if _is_told(change)]
    if names:
        summary += f"; changed by the loop on every rank alike: {_listed(names)}"
    if unexplained:
        summary += f"; variables that differ and are not known to matter: {_listed(unexplained)}"
    return Finding(NAME, loop, Verdict.PASS, summary, compared, None, (*details, *notes), data)


def _told(ours: int, theirs: int, difference: Difference) -> str:
    name, a, b = difference.name, difference.ours, difference.theirs
    if difference.step is None:
        return f"rank {ours} and rank {theirs} {difference.predicate or f'differ in {name}'}"
    if difference.moment == AFTER:
        return f"rank {theirs} ended the loop with {name} {b}, rank {ours} with {a}"
    return f"rank {theirs} ran step {difference.step} with {name} {b}, rank {ours} with {a}"


def _step(step: int | None, moment: str) -> int | None:
    return None if moment == AFTER else step


def _is_told(change: Change) -> bool:
    return change.kind is not Kind.SHOWN


def _notes(traces: Sequence[Conditions], unexplained: Sequence[str]) -> list[str]:
    """What differs and is no failure: it may explain bits that differ."""
    notes = []
    if unexplained:
        notes.append(f"variables that differ between ranks and are not known to matter: {_listed(unexplained)}")
    shown = conditions.shown(traces)
    if shown:
        notes.append(f"settings that differ between ranks and are harmless by themselves: {_listed(shown)}")
    some = conditions.loaded_by_some(traces)
    if some:
        notes.append(f"loaded on some ranks only: {_listed(some)}")
    return notes


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def environments_at_start(ranks: Sequence[AtStart]) -> list[Finding]:
    """What differs between ranks of which some never came to the end of a loop; nothing where nothing does."""
    if not ranks:
        return []
    base = conditions.most_alike(ranks)
    found = [(rank, d) for rank in ranks if rank is not base for d in conditions.differences(base, rank)]
    if not found:
        return []
    rank, first = found[0]
    details = [d.line(f"on rank {base.rank}", f"on rank {other.rank}") for other, d in found]
    divergence = Divergence(None, (base.rank, rank.rank), f"environment, {first.name}")
    summary = f"{_told(base.rank, rank.rank, first)}, before any loop ran"
    compared = Compared(0, conditions.compared(base) * (len(ranks) - 1))
    notes = _notes(ranks, conditions.unexplained(ranks))
    return [Finding(NAME, "*", Verdict.FAIL, summary, compared, divergence, (*details, *notes))]


def with_conditions(findings: Sequence[Finding]) -> list[Finding]:
    """Names variables that differ, and settings that a loop changed, beside every failure of bits of the same loop.

    Args:
        findings: of one CFG group, in the order in which they are told.
    """
    told = {finding.loop: finding for finding in findings if finding.name == NAME}
    return [_beside(finding, told.get(finding.loop)) for finding in findings]


def _beside(finding: Finding, environments: Finding | None) -> Finding:
    if finding.verdict is not Verdict.FAIL or environments is None or not CHECKS[finding.name].compares_x_t:
        return finding
    lines = [f"look first at {NAME}: {environments.summary}"] if environments.verdict is Verdict.FAIL else []
    lines += environments.data.get("told", ())
    return replace(finding, details=(*finding.details, *lines)) if lines else finding
