"""What fuzzing found, for people: properties of a combine, and the mutants that they caught."""

from __future__ import annotations

from dataclasses import replace

from verify.report.documents.fuzz import Fuzz, Mutants
from verify.report.message import failure_text, rank_failure_text
from verify.report.sections.blocks import Block, Bullets, Card, Cell, Command, Message, Presentation, Section, Table
from verify.report.sections.checks import checks_table
from verify.report.sections.culprit import check_card, failure_card, first_to_read, named
from verify.report.sections.plain import present
from verify.report.sections.properties import CLAIMS
from verify.verdict import Verdict


def present_fuzz(d: Fuzz) -> Presentation:
    """The first property that failed, every property, then each failure with the command that shows it again."""
    sections = []
    check = first_to_read(d.properties)
    if check is not None:
        card = check_card(check, d.properties, d.replays.get(check.name, d.command))
        card = replace(card, facts=[("what", check.summary), *card.facts])
        sections.append(Section("What is at fault" if check.verdict is Verdict.FAIL else "What is missing", [card]))
    elif d.failure is not None:
        sections.append(Section("Why it did not finish", [failure_card(d.failure, d.command)]))
    if d.properties:
        told = [detail for p in d.properties if p.verdict is Verdict.PASS for detail in p.details]
        table = checks_table(d.properties, "property", "cases", CLAIMS)
        blocks: list[Block] = [table, *([Bullets(told)] if told else [])]
        sections.append(Section("Properties", blocks))
    failures: list[Block] = []
    for p in d.properties:
        if p.verdict is not Verdict.PASS:
            failures.append(Message(named(p), p.verdict, failure_text(p)))
            failures += [Command(d.replays[p.name])] if p.name in d.replays else []
    if d.failure is not None:
        failures.append(Message(d.failure.task, Verdict.UNKNOWN, rank_failure_text(d.failure)))
        failures += [Command(d.command)]
    if failures:
        sections.append(Section("What failed" if d.verdict is Verdict.FAIL else "What could not be judged", failures))
    rate = f", {d.cases_per_minute:,.0f} a minute with start-up" if d.cases > 1 else ""
    passed = sum(p.verdict is Verdict.PASS for p in d.properties)
    said = f"{passed} of {len(d.properties)} properties hold in {d.cases:,} cases{rate}"
    subject = [f"combine {d.combine or 'of this package'}, seed {d.seed}",
               f"{d.world_size} ranks{f' over {d.backend}' if d.backend else ''} on {d.device}"]  # fmt: skip
    title = f"The combine fuzzed on {d.world_size} ranks on {d.device}"
    return present(d, title, said, sections, d.verdict, subject, d.timings)


def present_mutants(d: Mutants) -> Presentation:
    """Wrong combines that no property saw, then all of them."""
    missed = [m for m in d.mutants if not m.properties]
    sections = []
    if missed:
        facts = [(m.mutant, m.what) for m in missed]
        sections.append(Section("What was not caught", [Card(f"{len(missed)} wrong combines were not caught", facts)]))
    rows = [
        [m.mutant, m.what, str(m.cases_needed) if m.properties else Cell("not caught", Verdict.FAIL),
         ", ".join(m.properties)]
        for m in d.mutants
    ]  # fmt: skip
    headings = ["mutant", "what is wrong", "cases needed", "properties that saw it"]
    sections.append(Section("Mutants", [Table(headings, rows, minor=("properties that saw it",))]))
    profile = f" by the {d.profile} profile" if d.profile else ""
    said = f"{len(d.mutants) - len(missed)} of {len(d.mutants)} wrong combines caught{profile}"
    return present(d, "Combines with one thing wrong", said, sections, d.verdict, timings=d.timings)
