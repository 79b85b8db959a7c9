"""Findings on parts of a run, told as one: on several replicas, requests or windows of steps. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from verify.checks.records import CHECKS
from verify.verdict import Compared, Finding, Verdict, merge

_WORST_FIRST = (Verdict.FAIL, Verdict.UNKNOWN, Verdict.EXPLAINED, Verdict.PASS)


def over_replicas(replicas: Sequence[Sequence[Finding]]) -> list[Finding]:
    """One finding for each check and loop: what is worst in any replica, else what holds in all of them.

    Args:
        replicas: the findings of each replica, on the same checks and loops in the same order.
    """
    if len(replicas) == 1:
        return [_placed(finding, 0) for finding in replicas[0]]
    merged = []
    for findings in zip(*replicas, strict=True):
        worst = min((_WORST_FIRST.index(f.verdict), _step(f), r) for r, f in enumerate(findings))[2]
        found = findings[worst]
        compared = Compared(min(f.compared.steps for f in findings), sum(f.compared.elements for f in findings))
        if found.verdict.holds:
            summary = f"{found.summary}, in each of {len(findings)} replicas"
            merged.append(replace(found, summary=summary, compared=compared))
            continue
        others = tuple(
            f"replica {r}: {f.verdict}" + ("" if f.verdict.holds else f": {f.summary}")
            for r, f in enumerate(findings)
            if r != worst
        )
        told = _placed(found, worst)
        merged.append(
            replace(
                told,
                summary=f"replica {worst}: {found.summary}",
                compared=compared,
                details=(*others, *found.details),
                data={**found.data, "replica": worst},
            )
        )
    return merged


def over_requests(
    requests: Sequence[Sequence[Finding]], names: Sequence[str], commands: Sequence[str]
) -> list[Finding]:
    """One finding for each check and loop: what is worst in any request, the first such one, else what holds in all.

    Args:
        requests: the findings of each request; a request may lack those that could not be made of it.
        names: which request each is, in words; empty for the one that the run is about: its findings stand as they are.
        commands: what judges each request alone.
    """
    found: dict[tuple[str, str], list[tuple[int, Finding]]] = {}
    for number, findings in enumerate(requests):
        for finding in findings:
            found.setdefault((finding.name, finding.loop), []).append((number, finding))
    merged = []
    for parts in found.values():
        number, worst = min(parts, key=lambda part: _WORST_FIRST.index(part[1].verdict))
        steps, elements = (sum(getattr(f.compared, what) for _, f in parts) for what in ("steps", "elements"))
        told = replace(worst, compared=Compared(steps, elements))
        if worst.verdict.holds:
            merged.append(replace(told, summary=f"{worst.summary}, in each of {len(parts)} requests"))
        elif not names[number]:
            merged.append(told)
        else:
            data = {**worst.data, "request": number + 1, "command": commands[number]}
            merged.append(replace(told, summary=f"in {names[number]}: {worst.summary}", data=data))
    return merged


def _step(finding: Finding) -> int:
    """Where it broke, for ordering; before everything where no step is known."""
    first = finding.first_divergence
    return -2 if first is None or first.step is None else first.step


def _placed(finding: Finding, replica: int) -> Finding:
    first = finding.first_divergence
    if first is None:
        return finding
    return replace(finding, first_divergence=replace(first, replicas=(replica, replica)))


def over_windows(passes: Sequence[Sequence[Finding]]) -> list[Finding]:
    """One finding for each check and loop, as if every step had been kept at once.

    A check that sees all of a loop in each pass is told as it stands in the pass where it is worst. One that sees a
    window is told as it stands in the first window where it is worst; steps and elements are counted together.

    Args:
        passes: the findings of each pass, on the same checks and loops in the same order, windows in order of steps.
    """
    merged = []
    for findings in zip(*passes, strict=True):
        verdict = _verdict(findings)
        found = min((f for f in findings if f.verdict is verdict), key=_step)
        if not CHECKS[found.name].by_step:
            # The pass that keeps the last step also compares it with what the loop returned.
            told = found if verdict is not Verdict.PASS else findings[-1]
            merged.append(replace(told, compared=findings[-1].compared))
            continue
        compared = Compared(sum(f.compared.steps for f in findings), sum(f.compared.elements for f in findings))
        merged.append(replace(found, compared=compared, data=_data(findings, found)))
    return merged


def _verdict(findings: Sequence[Finding]) -> Verdict:
    """A window beyond the last step that some rank took holds nothing, and says nothing about those that do."""
    seen = [f.verdict for f in findings if f.compared.steps or f.verdict is not Verdict.UNKNOWN]
    return merge(seen or [f.verdict for f in findings])


def _data(findings: Sequence[Finding], found: Finding) -> dict[str, Any]:
    """The evidence of each window, joined: where nothing failed nothing differs."""
    pairs = found.data.get("pairs")
    if not pairs:
        return found.data
    if len({f.data["replica"] for f in findings if "replica" in f.data}) > 1:
        return {name: value for name, value in found.data.items() if name != "pairs"}  # Of different ranks.
    joined = [dict(pair) for pair in pairs]
    for number, pair in enumerate(joined):
        for name in ("mismatched_by_step", "max_ulp_by_step"):
            pair[name] = [n for finding in findings for n in _by_step(finding, number, name)]
    return {**found.data, "pairs": joined}


def _by_step(finding: Finding, number: int, name: str) -> Sequence[int | None]:
    pairs: Sequence[Mapping[str, Any]] = finding.data.get("pairs", ())
    return pairs[number][name] if pairs else [0] * finding.compared.steps
