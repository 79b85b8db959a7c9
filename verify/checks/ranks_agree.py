"""Claim: every rank holds the same ``x_t``, after every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

from verify.checks.agreement import BEFORE_THE_LOOP, Pair, agreement
from verify.checks.beside_x_t import harmless
from verify.layout import Layout
from verify.trace.trace import Trace
from verify.verdict import Compared, Divergence, Finding, Verdict

NAME = "ranks_agree"


def ranks_agree(traces: Sequence[Trace], layout: Layout | None = None) -> Finding:
    """Compares every two ranks that must hold the same: with three, the pair that agrees shows which is the odd one.

    Where ``x_t`` is cut, these are the ranks of one shard in all branch groups; else all ranks. Where a target says
    that every rank draws the same noise, that is compared first.
    """
    is_cut = layout is not None and layout.cut is not None
    other_noise = next((t for t in traces if t.equal_noise and t.noise != traces[0].noise), None)
    if other_noise is not None:
        summary = (
            f"rank 0 and rank {other_noise.rank} were given different noise, and the target says that every rank draws "
            "the same from one seed"
        )
        divergence = Divergence(BEFORE_THE_LOOP, (0, other_noise.rank), "x_0")
        digests = (f"SHA-256 {traces[0].noise} on rank 0", f"SHA-256 {other_noise.noise} on rank {other_noise.rank}")
        compared = Compared(0, len(traces))
        return Finding(NAME, traces[0].loop, Verdict.FAIL, summary, compared, divergence, digests)
    pairs = [
        Pair(a, b)
        for a, b in combinations(traces, 2)
        if not is_cut or layout is None or layout.of(a.rank).shard == layout.of(b.rank).shard
    ]
    held = f"{len(traces)} ranks hold the same bytes after every step"
    if is_cut and layout is not None:
        held = f"{layout.branch_groups} branch groups hold the same bytes of {layout.shards} shards after every step"
    noise = "; each drew the same noise, which the loop does not share" if traces[0].equal_noise else ""
    finding = agreement(
        NAME,
        traces[0].loop,
        pairs,
        held + noise,
        "one rank has nobody to agree with; run with a world size of 2 or more",
    )
    return replace(finding, details=harmless(traces)) if finding.verdict is Verdict.PASS else finding
