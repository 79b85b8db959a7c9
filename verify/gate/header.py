"""What a session says of itself: what is judged and on what, and at its end what was not judged."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

from verify.environment.variables import bit_variables
from verify.gate.claims import plan
from verify.gate.findings import not_run
from verify.gate.settings import Settings
from verify.text import literal


def header(settings: Settings) -> list[str]:
    """Lines for the head of a session."""
    import torch

    given = settings.given
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    nccl = f", NCCL {'.'.join(map(str, torch.cuda.nccl.version()))}" if gpus else ""
    variables = [f"{name}={value}" for name, value in bit_variables(os.environ).items()]
    world = given["world_size"] or "one rank for each branch"
    return [
        f"verify: {settings.subject}, preset {given['preset']}, device {given['device']}, world size {world}, "
        f"requires {settings.require_gpus} GPUs",
        f"verify: torch {torch.__version__}, {cuda}{nccl}, GPUs: {', '.join(gpus) or 'none'}",
        f"verify: variables that can change bits: {', '.join(variables) or 'none set'}",
    ]


def github_errors(failed: Sequence[Any]) -> list[str]:
    """What GitHub Actions shows beside a pull request: a line for each failed claim; nothing anywhere else.

    Args:
        failed: pytest's reports of failed tests.
    """
    if os.environ.get("GITHUB_ACTIONS") != "true":
        return []
    lines = []
    for report in failed:
        properties = dict(report.user_properties)
        if "verdict" in properties or "target" in properties:
            told = str(properties.get("message") or report.longreprtext)
            escaped = literal(told).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
            title = literal(f"verify {properties.get('check', '')} {properties.get('loop', '')}", line_breaks=False)
            lines.append(f"::error title={re.sub('[,:%]', ' ', title).strip()}::{escaped}")
    return lines


def missing_gpus(needed: int) -> str:
    """That there are fewer GPUs than needed; empty if there are not."""
    import torch

    found = torch.cuda.device_count()
    return f"needs {needed} GPU, found {found}" if found < needed else ""


def ending(settings: Settings, seen: int, judged: int, skipped: Sequence[Any]) -> list[str]:
    """Lines for the end of a session.

    Args:
        settings: of the session.
        seen: claims that it had.
        judged: claims and other tests that judged something.
        skipped: pytest's reports of skipped tests.
    """
    import torch

    lines = not_run(skipped, torch.cuda.device_count())
    if seen:
        lines.append(f"{judged} of {seen} claims about {settings.subject} were judged")
        lines += [f"not judged: {line}" for line in plan(settings.job).not_judged]
    return lines
