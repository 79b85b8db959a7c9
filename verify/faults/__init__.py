"""Real bugs, injected: each must be caught by the right check, at the right step, on the right rank."""

from __future__ import annotations

from verify.faults import denoiser, endings, environment, group, rules, steps
from verify.faults.registry import FAULTS, Fault

__all__ = ["FAULTS", "Fault", "denoiser", "endings", "environment", "group", "rules", "steps"]
