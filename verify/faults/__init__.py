"""Real bugs that are injected. The right check must catch each, at its step and on its rank."""

from __future__ import annotations

from verify.faults import denoiser, endings, environment, exchanges, group, layouts, requests, rules, samplers, steps
from verify.faults.registry import FAULTS, Fault

__all__ = [
    "FAULTS",
    "Fault",
    "denoiser",
    "endings",
    "environment",
    "exchanges",
    "group",
    "layouts",
    "requests",
    "rules",
    "samplers",
    "steps",
]
