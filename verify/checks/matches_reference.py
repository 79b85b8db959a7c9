"""Claim: the parallel loop computes what one process computes alone."""

from __future__ import annotations

from collections.abc import Sequence

from verify.checks.agreement import Pair, agreement, of_shard
from verify.layout import Layout
from verify.trace.trace import Trace
from verify.verdict import Finding

NAME = "matches_reference"


def matches_reference(traces: Sequence[Trace], reference: Trace | None, layout: Layout | None = None) -> Finding:
    """Compares each rank of one loop with the reference, or with its shard of the reference where ``x_t`` is cut."""
    pairs = [] if reference is None else [Pair(of_shard(reference, trace, layout), trace) for trace in traces]
    return agreement(
        NAME,
        traces[0].loop,
        pairs,
        "every rank holds the bytes of the single-process reference after every step",
        "there is no reference to compare with",
    )
