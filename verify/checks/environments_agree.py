"""Claim: nothing that can change bits differs between the ranks' environments."""

from __future__ import annotations

from collections.abc import Sequence

from verify.trace import PRIVATE_ENVIRONMENT, Trace
from verify.verdict import Compared, Divergence, Finding, Verdict

NAME = "environments_agree"


def environments_agree(traces: Sequence[Trace]) -> Finding:
    """Compares versions, hardware, flags and variables of every rank with rank 0's."""
    loop, first = traces[0].loop, traces[0]
    if len(traces) < 2:
        return Finding(NAME, loop, Verdict.UNKNOWN, "one rank has nobody to agree with")
    keys = sorted({key for trace in traces for key in trace.environment} - PRIVATE_ENVIRONMENT)
    compared = Compared(first.steps, len(keys) * (len(traces) - 1))
    differing = [
        (trace.rank, key, first.environment.get(key), trace.environment.get(key))
        for trace in traces[1:]
        for key in keys
        if first.environment.get(key) != trace.environment.get(key)
    ]
    if not differing:
        if not compared.elements:
            return Finding(NAME, loop, Verdict.UNKNOWN, "no rank said what it runs on", compared)
        return Finding(NAME, loop, Verdict.PASS, f"{len(keys)} properties equal on every rank", compared)
    details = [f"{key}: {ours!r} on rank 0, {theirs!r} on rank {rank}" for rank, key, ours, theirs in differing]
    rank, key, _, _ = differing[0]
    return Finding(
        NAME,
        loop,
        Verdict.FAIL,
        f"rank 0 and rank {rank} run with a different {key}",
        compared,
        Divergence(None, (0, rank), f"environment, {key}"),
        tuple(details),
    )
