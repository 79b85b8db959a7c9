"""Failures in words, always in the same order: what, where, how much, what it usually means, how to see it again."""

from __future__ import annotations

import math

from verify.checks.records import CHECKS
from verify.report.documents.parts import Check, Failure, FirstDivergence, RankReport
from verify.text import literal, place_of_call
from verify.verdict import Finding, Verdict

_MOST_DETAILS = 8
_MOST_LINES_AT_EACH_END = 20


def failure_text(finding: Finding | Check, command: str = "") -> str:
    """The whole message of a failed or unjudged check, as plain text.

    Args:
        finding: what the check says.
        command: what reproduces the run; left out if empty.
    """
    check = finding if isinstance(finding, Check) else Check.of(finding)
    lines = [f"{check.verdict.upper()} {check.name} ({check.loop}): {check.summary}"]
    if check.first_divergence is not None:
        lines += _place(check.first_divergence)
    lines += [f"  {detail}" for detail in check.details[:_MOST_DETAILS]]
    if len(check.details) > _MOST_DETAILS:
        lines.append(f"  and {len(check.details) - _MOST_DETAILS} more")
    # Of several requests, the one that shows it.
    return _joined(lines, usual_causes(check), check.data.get("command", command))


def usual_causes(check: Check) -> str:
    """What such a failure usually means; empty where the check did not fail or nothing is known of it."""
    record, first = CHECKS.get(check.name), check.first_divergence
    if check.verdict is not Verdict.FAIL or record is None:
        return ""
    at_start = first is not None and first.step is not None and first.step < 0
    return (at_start and record.usual_causes_at_start) or record.usual_causes


def rank_failure_text(failure: Failure, command: str = "") -> str:
    """Why a run did not finish, as plain text: the cause, then what became of each rank.

    Args:
        failure: the task, its cause, the seconds it took and a report for each rank.
        command: what reproduces the run; left out if empty.
    """
    lines = [f"UNKNOWN {failure.task}: {failure.cause} ({failure.seconds:.1f} s after it began)"]
    if failure.awaited is not None and failure.awaited.said != failure.cause:
        lines.append(f"  {failure.awaited.said}")
    for report in failure.ranks:
        lines.append(f"  {rank_line(failure, report)}")
        lines += indented(report.trace)
        if report.output.strip():
            lines += ["    it printed:", *indented(report.output)]
    return _joined(lines, usual_cause_of_ending(failure), command)


def rank_line(failure: Failure, report: RankReport) -> str:
    """What became of one rank, in a line."""
    doing = f", in {report.activity}" if report.activity and report.state != "finished" else ""
    step = "before step 0" if report.step < 0 else f"last step {report.step}"
    awaited = failure.awaited
    if awaited is not None and report.rank in awaited.waiting and report.activity != awaited.collective:
        step = f"its process ran ahead: {step}"
    where = f" ({report.where})" if report.where else ""
    return f"rank {report.rank}{where} {report.what} ({step}{doing})"


def usual_cause_of_ending(failure: Failure) -> str:
    """What such an ending usually means; empty where the report says it itself, as an exception does."""
    first = failure.ranks[0]
    if first.state == "died" and place_of_call(first.activity) is not None:
        return "ranks that give one collective tensors of different dtype or shape; or a fault in native code"
    if first.state == "hung" and failure.awaited is not None:
        return (
            "a rank skips a collective by a decision of its own, here or earlier (they pair up in order), returns "
            "early, or is busy elsewhere (compiling, loading); or all are slow: raise --timeout"
        )
    return ""


def _joined(lines: list[str], cause: str, command: str) -> str:
    lines += [f"  usually: {cause}"] if cause else []
    lines += [reproduce_line(command)] if command else []
    return "\n".join(literal(line, line_breaks=False) for line in lines)


def reproduce_line(command: str) -> str:
    """The last line of a message."""
    return f"  reproduce: {command}"


def _place(first: FirstDivergence) -> list[str]:
    where = ", ".join(places(first))
    if first.bits is None or first.values is None:
        return [f"  where: {where}"]
    names = side_names(first)
    width = max(map(len, names))
    lines = [f"  where: {where}"]
    for name, bits, value in zip(names, first.bits, first.numbers or (), strict=True):
        shown = value if isinstance(first.values[0], float | str) else int(value)
        lines.append(f"  {name:<{width}}  {bits}  {shown!r}")
    return [*lines, f"  {distance(first)}; {how_many(first)}"]


def places(first: FirstDivergence) -> list[str]:
    """Step, ranks, replicas and index, as far as they are known."""
    where = []
    if first.step is not None:
        where.append("before step 0" if first.step < 0 else f"step {first.step}")
    where.append(_two("rank", "ranks", first.ranks))
    if first.replicas is not None:
        where.append(_two("replica", "replicas", first.replicas))
    if first.index is not None:
        where.append(f"index {list(first.index)}")
    return where


def _two(one: str, several: str, numbers: tuple[int, int]) -> str:
    a, b = numbers
    return f"{one} {a}" if a == b else f"{several} {a} and {b}"


def side_names(first: FirstDivergence) -> tuple[str, str]:
    """What the two values are called."""
    a, b = first.ranks
    if first.sides is None:
        return f"rank {a}", f"rank {b}"
    return first.sides if a == b else (f"{first.sides[0]}, rank {a}", f"{first.sides[1]}, rank {b}")


def how_many(first: FirstDivergence) -> str:
    """How many elements differ, and by how much at most."""
    most = "" if first.max_ulp is None or first.mismatched == 1 else f", at most {first.max_ulp} ULP"
    return f"{first.mismatched} of {first.of} elements differ{most}"


def distance(first: FirstDivergence) -> str:
    """How far two values are from each other; NaNs and zeros are where numbers and bytes part."""
    a, b = first.numbers or (math.nan, math.nan)
    nans = sum(map(math.isnan, (a, b)))
    if nans == 2:
        return "both are NaN, with different bytes"
    if nans == 1:
        return "one of them is a NaN"
    if first.ulp is None:
        return "integers, which have no ULP"
    equal = ", equal as numbers and not as bytes" if a == b else ""
    return f"{first.ulp} ULP apart{equal}"


def indented(text: str) -> list[str]:
    """The lines of a stack or of output; where there are many, those at both ends: either may hold the cause."""
    lines = text.strip("\n").rstrip().splitlines()
    left_out = len(lines) - 2 * _MOST_LINES_AT_EACH_END
    if left_out > 0:
        middle = [f"... {left_out} lines left out ..."]
        lines = lines[:_MOST_LINES_AT_EACH_END] + middle + lines[-_MOST_LINES_AT_EACH_END:]
    return [f"    {line}" for line in lines]
