"""Claim: every rank holds the same ``x_t``, after every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

from verify.checks.agreement import Pair, agreement
from verify.checks.beside_x_t import harmless
from verify.trace.trace import Trace
from verify.verdict import Finding, Verdict

NAME = "ranks_agree"


def ranks_agree(traces: Sequence[Trace]) -> Finding:
    """Compares every two ranks of one loop: with three, the pair that agrees shows which rank is the odd one."""
    pairs = [Pair(a, b) for a, b in combinations(traces, 2)]
    finding = agreement(
        NAME,
        traces[0].loop,
        pairs,
        f"{len(traces)} ranks hold the same bytes after every step",
        "one rank has nobody to agree with; run with a world size of 2 or more",
    )
    return replace(finding, details=harmless(traces)) if finding.verdict is Verdict.PASS else finding
