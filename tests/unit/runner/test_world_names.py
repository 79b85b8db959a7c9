"""Ranks are named by their number in the world, with that in the group where it is first named."""

from __future__ import annotations

from verify.runner.world_names import in_world
from verify.verdict import Compared, Divergence, Finding, Verdict


def test_every_rank_of_a_finding_is_renamed() -> None:
    finding = Finding(
        "ranks_agree",
        "local",
        Verdict.FAIL,
        "rank 0 of local and rank 1 of local differ in x_t after step 3",
        Compared(4, 8),
        Divergence(3, (0, 1), "x_t"),
        ("located: on rank 1", "rank 10 and ranks agree"),
    )
    renamed = in_world(finding, {0: 3, 1: 1})
    assert renamed.summary == (
        "rank 3 (rank 0 of the CFG group) of local and rank 1 (rank 1 of the CFG group) of local differ in x_t after "
        "step 3"
    )
    assert renamed.details == ("located: on rank 1", "rank 10 and ranks agree")
    assert renamed.first_divergence is not None
    assert renamed.first_divergence.ranks == (3, 1)
    assert in_world(finding, {}) is finding
