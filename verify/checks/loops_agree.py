"""Claim: all versions of the loop compute the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from verify.checks.agreement import Pair, agreement
from verify.trace.trace import Trace
from verify.verdict import Finding

NAME = "loops_agree"


def loops_agree(runs: Mapping[str, Sequence[Trace]]) -> Finding:
    """Compares neighbouring loop versions on each rank that both have."""
    pairs = [Pair(a, b) for one, other in pairwise(runs.values()) for a, b in zip(one, other, strict=False)]
    return agreement(
        NAME,
        "*",
        pairs,
        f"{', '.join(runs)} hold the same bytes on every rank after every step",
        "one loop has no other version to agree with",
    )
