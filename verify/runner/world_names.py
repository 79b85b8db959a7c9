"""Ranks by their number in the world, where that is another than in the run, and with their coordinates."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from verify.layout import Layout
from verify.trace.trace import Trace
from verify.verdict import Finding

_RANK = re.compile(r"\brank (\d+)\b")


def world_names(traces: Sequence[Trace]) -> dict[int, int]:
    """The global rank of each rank of one CFG group; empty where they are the same."""
    found = {trace.rank: trace.global_rank for trace in traces if trace.global_rank is not None}
    return {} if all(own == of_world for own, of_world in found.items()) else found


def coordinates(layout: Layout | None, branches: Sequence[str]) -> dict[int, str]:
    """What each rank of a layout is, in words; nothing where each is a branch group of its own."""
    if layout is None:
        return {}
    told = {rank: layout.told(rank, tuple(branches)) for rank in range(layout.ranks)}
    return {rank: words for rank, words in told.items() if words}


def in_world(finding: Finding, names: Mapping[int, int], places: Mapping[int, str] | None = None) -> Finding:
    """The finding with global ranks, each with its number in the group, and its coordinates, where it is first named.

    Checks compare the ranks of one group, and name them so. Their sentences are rewritten here, once for all checks.

    Args:
        finding: what a check says.
        names: the global rank of each rank; empty where they are the same.
        places: the coordinates of each rank in words; nothing for a rank that has none worth telling.
    """
    places = {} if places is None else places
    if not names and not places:
        return finding
    told: set[int] = set()

    def renamed(match: re.Match[str]) -> str:
        own = int(match[1])
        if own not in names and own not in places:
            return match[0]
        notes = [f"rank {own} of the CFG group"] if own in names else []
        alone = match.string.startswith(" of reference", match.end())  # It holds all of x_t, and every branch.
        notes += [places[own]] if own in places and not alone else []
        note = "" if own in told or not notes else f" ({'; '.join(notes)})"
        told.update([own] if notes else [])
        return f"rank {names.get(own, own)}{note}"

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
