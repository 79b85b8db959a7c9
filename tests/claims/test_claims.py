"""The claims that the package ships, as this repository's own gate: ``pytest tests/claims --target NAME``."""

from __future__ import annotations

import pytest

from verify.gate.test_claims import test_claim

__all__ = ["test_claim"]

pytestmark = pytest.mark.gate
