"""Does every rank hold the same ``x_t``? A correctness verification suite for CFG-parallel denoising.

Names are loaded when they are first used: importing torch takes seconds, and the command line uses them to start the
processes that ranks are forked from.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from verify.combine import combine_cfg
    from verify.errors import BadInput, Unjudged
    from verify.request import DenoiseRequest
    from verify.runner.job import Job
    from verify.runner.run import run
    from verify.verdict import Verdict

__version__ = "0.1.0"

_HOMES = {
    "BadInput": "verify.errors",
    "DenoiseRequest": "verify.request",
    "Job": "verify.runner.job",
    "Unjudged": "verify.errors",
    "Verdict": "verify.verdict",
    "combine_cfg": "verify.combine",
    "run": "verify.runner.run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'verify' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


__all__ = ["BadInput", "DenoiseRequest", "Job", "Unjudged", "Verdict", "combine_cfg", "run"]
