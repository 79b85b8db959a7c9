"""A run for people."""

from __future__ import annotations

import re
from collections.abc import Iterator

from verify.report.documents.parts import Check, Failure
from verify.report.documents.run import Picture, Run
from verify.report.message import failure_text, indented, rank_failure_text, rank_line
from verify.report.sections import environment, rounding
from verify.report.sections.blocks import (
    Block,
    Cell,
    Fold,
    Image,
    Message,
    Paragraph,
    Presentation,
    Section,
    Table,
    shown,
)
from verify.report.sections.checks import at_step, checks_table
from verify.report.sections.culprit import check_card, failure_card, first_to_read, named
from verify.report.sections.evidence import LEGEND, figures, strips
from verify.verdict import EXIT_STATUS, Verdict

# Seconds; less is rounding.
_LEAST_REST = 0.05
_BRANCH_SCALE = re.compile(r"cfg_(\w+)_scale")


def present_run(d: Run) -> Presentation:
    """Verdict, what is at fault, the checks, agreement by step, every failure, the environment."""
    return Presentation(
        title=f"{d.verdict}{_at_fault(d)} | {_subject(d)[0]}, {d.world_size} ranks, {d.device}",
        verdict=d.verdict,
        heading="",
        said=_said(d),
        subject=_subject(d),
        notes=d.notes,
        sections=list(_sections(d)),
        command=d.command,
        made=environment.made_line(d),
        closing=closing(d.verdict, d.timings, len(d.requests)),
    )


def closing(verdict: Verdict, timings: dict[str, float], requests: int = 1) -> str:
    """The exit status and where the time went: parts that add up to the whole."""
    named = {name: seconds for name, seconds in timings.items() if name != "total"}
    rest = timings.get("total", 0.0) - sum(named.values())
    if named and rest >= _LEAST_REST:
        named["preparing" if requests < 2 else "preparing and the other requests"] = rest
    parts = [f"{name} {seconds:.2f} s" for name, seconds in named.items()]
    spent = f" in {timings['total']:.1f} s" if "total" in timings else ""
    return f"exit status {EXIT_STATUS[verdict]}{spent}" + (f" ({', '.join(parts)})" if parts else "")


def _at_fault(d: Run) -> str:
    check = first_to_read(d.checks)
    if check is not None and check.verdict is d.verdict:
        return f": {named(check)} {at_step(check)}".rstrip()
    return "" if d.failure is None else f": rank {d.failure.ranks[0].rank} {d.failure.ranks[0].what}"


def _said(d: Run) -> str:
    if d.failure is not None and d.verdict is Verdict.UNKNOWN:
        return f"{d.failure.task}: {d.failure.cause}"
    if d.verdict.holds:
        if d.verdict is Verdict.EXPLAINED:
            apart = [each.loop for each in d.rounding if each.decision != "equal"]
            return f"Not the reference's bits, by no more than rounding explains: {', '.join(apart)}."
        agreed = next((f" {c.summary[0].upper()}{c.summary[1:]}." for c in d.checks if c.name == "ranks_agree"), "")
        return f"All {len(d.checks)} checks passed.{agreed}"
    check = first_to_read(d.checks)
    return "Nothing was judged." if check is None else check.summary


def _subject(d: Run) -> list[str]:
    """What was run, in two lines."""
    r = d.request
    size = f"{r['height']}x{r['width']}" if {"height", "width"} <= set(r) else ""
    words = [environment.with_version(d.target, d.environment), r.get("preset"), size, r.get("dtype")]
    scales = {found[1]: scale for name, scale in r.items() if (found := _BRANCH_SCALE.fullmatch(name))}
    guides = [name for name, scale in scales.items() if isinstance(scale, (int, float)) and scale > 1.0]
    guidance = f", guided by {' and '.join(guides)}" if guides else ", not guided" if scales else ""
    ranks = _count(d.world_size, "rank")
    if d.replicas:
        hosts = {host for replica in d.replicas for host in replica.hosts} - {"unknown"}
        ranks = f"{_count(len(d.replicas), 'replica')} of {ranks} on {_count(len(hosts), 'host')}"
    over = f" over {d.backend}" if d.backend else ""
    return [
        " ".join(str(word) for word in words if word) + guidance,
        f"{ranks}{over} on {d.device}, {d.schedule.steps} steps, {d.schedule.guided_steps} guided",
        *_requests_in_short(d),
    ]


def _requests_in_short(d: Run) -> list[str]:
    if len(d.requests) < 2:
        return []
    again = sum(judged.again for judged in d.requests)
    refused = sum(bool(judged.refused) for judged in d.requests)
    others = len(d.requests) - 1 - again
    parts = ["this one", f"{others} other{'s' * (others != 1)}", *(["this one again"] if again else [])]
    said = f"{len(d.requests)} requests: {', '.join(parts[:-1])} and {parts[-1]}"
    return [said + (f"; {refused} refused by the target" if refused else "")]


def _requests(d: Run) -> list[Block]:
    """What each further request has that the first has not, and what became of it."""
    if len(d.requests) < 2:
        return []
    rows: list[list[str | Cell]] = []
    for number, judged in enumerate(d.requests):
        other = [f"{name} {shown(value)}" for name, value in judged.request.items() if d.request.get(name) != value]
        differs = "the first again" if judged.again else ", ".join(other) or "the first"
        verdict = judged.refused if judged.verdict is None else Cell("", judged.verdict)
        rows.append([str(number + 1), differs, verdict])
    caption = "Requests, and what the others have that the first has not"
    return [Table(["request", "differs in", "verdict"], rows, caption, folded=True)]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _sections(d: Run) -> Iterator[Section]:
    troubled = [check for check in d.checks if not check.verdict.holds]
    if not d.verdict.holds:
        yield from _fault(d)
    checks = Section("Checks", [checks_table(d.checks), *_collectives(d), *_requests(d)])
    drawn = strips(d)
    agreement = Section("Agreement, step by step", [Paragraph(LEGEND), *drawn] if drawn else [], page_only=True)
    if d.checks:
        yield from (checks, agreement) if d.verdict.holds else (agreement, checks)
    if d.rounding:
        yield rounding.section(d.rounding)
    if troubled:
        failed = any(check.verdict is Verdict.FAIL for check in troubled)
        yield Section("What failed" if failed else "What could not be judged", list(_evidence(d, troubled)))
    if d.picture is not None:
        yield Section("The picture", [_picture(d.picture)], page_only=True)
    if d.failure is not None:
        yield Section("What became of each rank", [_endings(d.failure)])
    yield environment.section(d.environment)


def _picture(picture: Picture) -> Image:
    same = "the same file on every rank" if len(set(picture.sha256)) == 1 else "another file on some ranks"
    return Image("; ".join(filter(None, [f"{picture.loop}, rank 0: {same}", picture.note])), picture.png)


def _fault(d: Run) -> Iterator[Section]:
    check = first_to_read(d.checks)
    if check is not None and (d.failure is None or check.verdict is Verdict.FAIL):
        heading = "What is at fault" if check.verdict is Verdict.FAIL else "What is missing"
        yield Section(heading, [check_card(check, d.checks, d.command)])
    elif d.failure is not None:
        yield Section("Why it did not finish", [failure_card(d.failure, d.command)])


def _collectives(d: Run) -> list[Block]:
    counted = [
        f"in {loop}, {' and '.join(f'{count} {name}' for name, count in counts.items()) or 'none'}"
        for loop, counts in d.collectives.items()
    ]
    return [Paragraph(f"collectives on rank 0: {'; '.join(counted)}")] if counted else []


def _evidence(d: Run, troubled: list[Check]) -> Iterator[Block]:
    """Each message with its pictures; a picture that an earlier check of the same loop has shown is left out."""
    seen: set[str] = set()
    for check in troubled:
        yield Message(named(check), check.verdict, failure_text(check))
        for figure in figures(check, d):
            if (key := check.loop + repr(figure)) not in seen:
                seen.add(key)
                yield figure


def _endings(failure: Failure) -> Message:
    stacks = []
    for rank in failure.ranks:
        said = [("stack", rank.trace), ("output", rank.output)]
        stacks += [Fold(f"{what} of rank {rank.rank}", "\n".join(line[4:] for line in indented(text)))
                   for what, text in said if text.strip()]  # fmt: skip
    short = "\n".join([f"{failure.task}: {failure.cause}", *(rank_line(failure, rank) for rank in failure.ranks)])
    return Message(failure.task, Verdict.UNKNOWN, rank_failure_text(failure), short, stacks)
