"""A failure in words, always in the same order: what, where, how much, what it usually means, how to see it again."""

from __future__ import annotations

from verify.verdict import Divergence, Finding

# What a failed check usually means; kept to what has been seen, see verify/faults/.
USUAL_CAUSES = {
    "ranks_agree": "one rank combined or stepped with other bits: another kernel, dtype, input or order of branches",
    "matches_reference": "every rank may agree and all be wrong: branch order, scales, schedule or combine",
    "loops_agree": "one version of the loop departs from the algorithm of the other",
    "collectives": "a collective is skipped, added, or called with another tensor; on real GPUs this ends in a hang",
    "parallelism_engaged": "the parallel setting is ignored, or a rank takes its branch from the wrong group",
    "cache_frozen": "a cache is updated or shared while denoising, or a rank prefilled it differently",
    "observed": "observe is given a copy from another moment than the x_t the loop goes on with",
    "finite": "an overflow or a division by zero; equal NaNs on every rank are still no image",
    "environments_agree": "ranks run on different hardware, versions or flags; settle this before looking at bits",
}


def failure_text(finding: Finding, command: str = "") -> str:
    """The whole message of a failed or unjudged check, as plain text.

    Args:
        finding: what the check says.
        command: what reproduces the run; left out if empty.
    """
    lines = [f"{finding.verdict.upper()} {finding.name} ({finding.loop}): {finding.summary}"]
    if finding.first_divergence is not None:
        lines += _place(finding.first_divergence)
    lines += [f"  {detail}" for detail in finding.details[:8]]
    if len(finding.details) > 8:
        lines.append(f"  and {len(finding.details) - 8} more")
    if finding.verdict == "fail" and finding.name in USUAL_CAUSES:
        lines.append(f"  usually: {USUAL_CAUSES[finding.name]}")
    if command:
        lines.append(f"  reproduce: {command}")
    return "\n".join(lines)


def _place(divergence: Divergence) -> list[str]:
    where = []
    if divergence.step is not None:
        where.append("before step 0" if divergence.step < 0 else f"step {divergence.step}")
    a, b = divergence.ranks
    where.append(f"rank {a}" if a == b else f"ranks {a} and {b}")
    d = divergence.difference
    if d is None:
        return ["  where: " + ", ".join(where)]
    lines = ["  where: " + ", ".join([*where, f"index {list(d.index)}"])]
    names = divergence.sides or (f"rank {a}", f"rank {b}")
    if divergence.sides and a != b:
        names = (f"{divergence.sides[0]}, rank {a}", f"{divergence.sides[1]}, rank {b}")
    width = max(map(len, names))
    lines += [f"  {name:<{width}}  {bits}  {value!r}" for name, bits, value in zip(names, d.bits, d.values, strict=True)]
    apart = "one of them is a NaN" if d.ulp is None else f"{d.ulp} ULP apart"
    most = "" if d.max_ulp is None or d.mismatched == 1 else f", at most {d.max_ulp} ULP"
    lines.append(f"  {apart}; {d.mismatched} of {d.of} elements differ{most}")
    return lines
