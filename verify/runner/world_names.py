"""Ranks by their number in the world, where that is another than in the CFG group."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from verify.trace.trace import Trace
from verify.verdict import Finding

_RANK = re.compile(r"\brank (\d+)\b")


def world_names(traces: Sequence[Trace]) -> dict[int, int]:
    """The global rank of each rank of one CFG group; empty where they are the same."""
    found = {trace.rank: trace.global_rank for trace in traces if trace.global_rank is not None}
    return {} if all(own == of_world for own, of_world in found.items()) else found


def in_world(finding: Finding, names: Mapping[int, int]) -> Finding:
    """The finding with global ranks, each with its number in the group where it is first named.

    Checks compare the ranks of one group, and name them so. Their sentences are rewritten here, once for all checks.
    """
    if not names:
        return finding
    told: set[int] = set()

    def renamed(match: re.Match[str]) -> str:
        own = int(match[1])
        if own not in names:
            return match[0]
        note = "" if own in told else f" (rank {own} of the CFG group)"
        told.add(own)
        return f"rank {names[own]}{note}"

    def rewritten(text: str) -> str:
        return _RANK.sub(renamed, text)

    divergence = finding.first_divergence
    if divergence is not None:
        first, second = divergence.ranks
        divergence = replace(divergence, ranks=(names.get(first, first), names.get(second, second)))
    return replace(
        finding,
        summary=rewritten(finding.summary),
        details=tuple(map(rewritten, finding.details)),
        first_divergence=divergence,
    )
