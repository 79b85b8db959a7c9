"""The gate among your own tests: every rank of the CFG-parallel loop holds the same latents at every step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TARGET = f"{Path(__file__).parents[1] / 'verify_target.py'}:MyTarget"


def test_every_rank_holds_the_same_latents(verifier: Any) -> None:
    verifier.assert_pass(verifier.run(target=TARGET))
