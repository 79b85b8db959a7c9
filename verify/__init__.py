"""Does every rank hold the same ``x_t``? A correctness verification suite for CFG-parallel denoising.

    import verify

    def my_loop(denoiser, request, x_0, group, observe):
        ...

    report = verify.run(verify.DenoiseRequest(num_timesteps=20), loop=my_loop)
    print(report.verdict)                                # pass, fail or unknown

:func:`run` judges the loops of a :class:`Target`, or one of yours, on real ranks, and returns a :class:`Report`. From a
shell the same is ``verify run --loop my_loop.py:my_loop``; ``verify help`` lists the guides. In pytest, the fixture
``verifier`` does it: ``verifier.assert_pass(verifier.run(loop=my_loop))``.
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
    from verify.runner.run_report import RunReport as Report
    from verify.schedule import Schedule
    from verify.targets.protocol import ModelOptions, Prepared, Target
    from verify.verdict import Verdict

__version__ = "0.1.0"

# Loaded when they are first used: importing torch takes seconds, and the command line uses this package to start the
# processes that ranks are forked from.
_HOMES = {
    "BadInput": "verify.errors:BadInput",
    "DenoiseRequest": "verify.request:DenoiseRequest",
    "Job": "verify.runner.job:Job",
    "ModelOptions": "verify.targets.protocol:ModelOptions",
    "Prepared": "verify.targets.protocol:Prepared",
    "Report": "verify.runner.run_report:RunReport",
    "Schedule": "verify.schedule:Schedule",
    "Target": "verify.targets.protocol:Target",
    "Unjudged": "verify.errors:Unjudged",
    "Verdict": "verify.verdict:Verdict",
    "combine_cfg": "verify.combine:combine_cfg",
    "run": "verify.runner.run:run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'verify' has no attribute {name!r}")
    module, _, known_as = _HOMES[name].partition(":")
    return getattr(importlib.import_module(module), known_as)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


__all__ = [
    "BadInput",
    "DenoiseRequest",
    "Job",
    "ModelOptions",
    "Prepared",
    "Report",
    "Schedule",
    "Target",
    "Unjudged",
    "Verdict",
    "combine_cfg",
    "run",
]
