"""Failures in words, always in the same order: what, where, how much, what it usually means, how to see it again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from verify.text import literal, place_of_call
from verify.verdict import Difference, Divergence, Finding

# What a failed check usually means; kept to what has been seen, see verify/faults/.
USUAL_CAUSES = {
    "ranks_agree": "one rank combined or stepped with other bits: another kernel, dtype, input or order of branches",
    "matches_reference": "branch order, scales, schedule or combine, on every rank alike; or the weights, cache or "
    "kernels of one rank",
    "loops_agree": "one version of the loop departs from the algorithm of the other",
    "schedule": "the terminal 0 counted as a step of its own (vllm-omni issues 4470, 4509, 6359), or the interval's "
    "bound compared in another precision",
    "collectives": "a collective is skipped, added, or called with another tensor; on real GPUs this ends in a hang",
    "parallelism_engaged": "the parallel setting is ignored, a rank takes its branch from the wrong group, or a step "
    "cache answers in place of the network",
    "cache_frozen": "a cache is updated or shared while denoising, or a rank prefilled it differently",
    "observed": "observe is given a copy from another moment than the x_t the loop goes on with",
    "finite": "an overflow or a division by zero; equal NaNs on every rank are still no image",
    "replicas_agree": "one replica holds other weights, contexts or settings, or its host computes otherwise",
    "windows_agree": "the loop or its target keeps something from one run to the next; judge it without --window",
    "environments_agree": "ranks run on different hardware, versions or flags; settle this before looking at bits",
}
# The same where the difference is there before the first step.
_USUAL_CAUSES_AT_THE_START = {
    "ranks_agree": "the initial noise is not shared: broadcast x_0 from rank 0 before the first step",
    "matches_reference": "noise from another seed, generator, dtype or rank than the request's",
}

_MOST_DETAILS = 8
_MOST_LINES_AT_EACH_END = 20


def failure_text(finding: Finding, command: str = "") -> str:
    """The whole message of a failed or unjudged check, as plain text.

    Args:
        finding: what the check says.
        command: what reproduces the run; left out if empty.
    """
    lines = [f"{finding.verdict.upper()} {finding.name} ({finding.loop}): {finding.summary}"]
    if finding.first_divergence is not None:
        lines += _place(finding.first_divergence)
    lines += [f"  {detail}" for detail in finding.details[:_MOST_DETAILS]]
    if len(finding.details) > _MOST_DETAILS:
        lines.append(f"  and {len(finding.details) - _MOST_DETAILS} more")
    if finding.verdict == "fail" and finding.name in USUAL_CAUSES:
        first = finding.first_divergence
        at_the_start = first is not None and first.step is not None and first.step < 0
        causes = USUAL_CAUSES | (_USUAL_CAUSES_AT_THE_START if at_the_start else {})
        lines.append(f"  usually: {causes[finding.name]}")
    if command:
        lines.append(reproduce_line(command))
    return "\n".join(literal(line, line_breaks=False) for line in lines)


def rank_failure_text(failure: Mapping[str, Any], command: str = "") -> str:
    """Why a run did not finish, as plain text: the cause, then what became of each rank.

    Args:
        failure: the task, its cause, the seconds it took and a report for each rank, as in the JSON document.
        command: what reproduces the run; left out if empty.
    """
    lines = [f"UNKNOWN {failure['task']}: {failure['cause']} ({failure['seconds']:.1f} s after it began)"]
    waits: Mapping[str, Any] = failure.get("awaited", {"said": failure["cause"], "waiting": ()})
    if waits["said"] != failure["cause"]:
        lines.append(f"  {waits['said']}")
    for r in failure["ranks"]:
        doing = f", in {r['activity']}" if r["activity"] and r["state"] != "finished" else ""
        step = "before step 0" if r["step"] < 0 else f"last step {r['step']}"
        if r["rank"] in waits["waiting"] and r["activity"] != waits["collective"]:
            step = f"its process ran ahead: {step}"
        place = f" ({r['where']})" if r.get("where") else ""
        lines.append(f"  rank {r['rank']}{place} {r['what']} ({step}{doing})")
        lines += _indented(r["trace"])
        if r["output"].strip():
            lines += ["    it printed:", *_indented(r["output"])]
    cause = _usual_cause_of_an_ending(failure)
    if cause:
        lines.append(f"  usually: {cause}")
    if command:
        lines.append(reproduce_line(command))
    return "\n".join(literal(line, line_breaks=False) for line in lines)


def _usual_cause_of_an_ending(failure: Mapping[str, Any]) -> str:
    """What such an ending usually means; empty where the report says it itself, as an exception does."""
    first = failure["ranks"][0]
    if first["state"] == "died" and place_of_call(first["activity"]) is not None:
        return "ranks that give one collective tensors of different dtype or shape; or a fault in native code"
    if first["state"] == "hung" and "awaited" in failure:
        return (
            "a rank skips a collective by a decision of its own, here or earlier (they pair up in order), returns "
            "early, or is busy elsewhere (compiling, loading); or all are slow: raise --timeout"
        )
    return ""


def reproduce_line(command: str) -> str:
    """The last line of a message."""
    return f"  reproduce: {command}"


def _place(divergence: Divergence) -> list[str]:
    where = []
    if divergence.step is not None:
        where.append("before step 0" if divergence.step < 0 else f"step {divergence.step}")
    a, b = divergence.ranks
    where.append(f"rank {a}" if a == b else f"ranks {a} and {b}")
    if divergence.replicas is not None:
        one, other = divergence.replicas
        where.append(f"replica {one}" if one == other else f"replicas {one} and {other}")
    d = divergence.difference
    if d is None:
        return ["  where: " + ", ".join(where)]
    lines = ["  where: " + ", ".join([*where, f"index {list(d.index)}"])]
    names = divergence.sides or (f"rank {a}", f"rank {b}")
    if divergence.sides and a != b:
        names = (f"{divergence.sides[0]}, rank {a}", f"{divergence.sides[1]}, rank {b}")
    width = max(map(len, names))
    for name, bits, value in zip(names, d.bits, d.values, strict=True):
        lines.append(f"  {name:<{width}}  {bits}  {value!r}")
    most = "" if d.max_ulp is None or d.mismatched == 1 else f", at most {d.max_ulp} ULP"
    lines.append(f"  {_apart(d)}; {d.mismatched} of {d.of} elements differ{most}")
    return lines


def _apart(difference: Difference) -> str:
    """How far two values are from each other; NaNs and zeros are where numbers and bytes part."""
    nans = sum(math.isnan(value) for value in difference.values)
    if nans == 2:
        return "both are NaN, with different bytes"
    if nans == 1:
        return "one of them is a NaN"
    if difference.ulp is None:
        return "integers, which have no ULP"
    a, b = difference.values
    equal = ", equal as numbers and not as bytes" if a == b else ""
    return f"{difference.ulp} ULP apart{equal}"


def _indented(text: str) -> list[str]:
    """The lines of a stack or of output; where there are many, those at both ends: either may hold the cause."""
    lines = text.strip("\n").rstrip().splitlines()
    left_out = len(lines) - 2 * _MOST_LINES_AT_EACH_END
    if left_out > 0:
        middle = [f"... {left_out} lines left out ..."]
        lines = lines[:_MOST_LINES_AT_EACH_END] + middle + lines[-_MOST_LINES_AT_EACH_END:]
    return [f"    {line}" for line in lines]
