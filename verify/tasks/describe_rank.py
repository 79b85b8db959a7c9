"""Says what a rank runs on before it runs anything: ranks that cannot even begin may differ in just that."""

from __future__ import annotations

from verify.environment.conditions import AtStart
from verify.environment.identity import identity
from verify.ranks.rank import Rank


def describe_at_start(rank: Rank) -> AtStart:
    """What this rank runs on, under its global number."""
    number = rank.rank + (rank.replica or 0) * rank.world_size
    return AtStart(number, rank.environment(), identity())
