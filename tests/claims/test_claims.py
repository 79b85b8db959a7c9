"""What a merge is gated on: each claim that the loop without a broadcast rests on, against the chosen target.

``pytest tests/claims --target NAME --preset P --world-size N --device D``

A claim about a loop or a guidance that the target does not offer is skipped, and the reason says so.
"""

from __future__ import annotations

import pytest

from verify.gate.plugin import Verifier

pytestmark = pytest.mark.gate

GUIDANCE = ("text", "text and image")
CHECKS = (
    "ranks_agree",
    "matches_reference",
    "schedule",
    "collectives",
    "parallelism_engaged",
    "cache_frozen",
    "observed",
    "finite",
    "environments_agree",
)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("guidance", GUIDANCE)
def test_claim(verifier: Verifier, guidance: str, target_loop: str, check: str) -> None:
    finding = verifier.assert_pass(verifier.job(guidance), check, target_loop)
    assert finding.compared.elements


@pytest.mark.parametrize("guidance", GUIDANCE)
def test_loops_agree(verifier: Verifier, guidance: str) -> None:
    verifier.require_loops(2)
    verifier.assert_pass(verifier.job(guidance), "loops_agree", "*")


@pytest.mark.parametrize("check", CHECKS)
def test_three_branches_on_two_ranks(verifier: Verifier, check: str) -> None:
    """``round_robin`` needs no rank for each branch."""
    verifier.require_loops(named="round_robin")
    job = verifier.job("text and image", loops=("round_robin",), world_size=2)
    verifier.assert_pass(job, check, "round_robin")
