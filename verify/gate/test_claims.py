"""What a merge is gated on: each claim that the loop without a broadcast rests on, against the chosen target.

``pytest --pyargs verify.gate --verify-target my.module:Target``. There is one test for each way to run the target, each
of its loops and each check; what the target does not offer is told at the end of the session.
"""

from __future__ import annotations

from verify.gate.claims import Claim
from verify.gate.verifier import Verifier


def test_claim(verify_gate: Verifier, verify_claim: Claim) -> None:
    verify_gate.assert_claim(verify_claim)
