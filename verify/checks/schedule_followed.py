"""Claim: the loop takes the steps of the schedule: one fewer than there are timesteps."""

from __future__ import annotations

from collections.abc import Sequence

from verify.request import DenoiseRequest
from verify.trace import Trace
from verify.verdict import Compared, Divergence, Finding, Verdict

NAME = "schedule"


def schedule_followed(traces: Sequence[Trace], request: DenoiseRequest) -> Finding:
    """Counts each rank's steps."""
    loop, due = traces[0].loop, request.schedule.steps
    compared = Compared(due, len(traces))
    for trace in traces:
        if trace.steps != due:
            summary = (
                f"rank {trace.rank} took {trace.steps} Euler steps, expected {due}: {request.num_timesteps} timesteps "
                "end in 0, which starts no step"
            )
            divergence = Divergence(min(trace.steps, due), (trace.rank, trace.rank), "number of steps")
            return Finding(NAME, loop, Verdict.FAIL, summary, compared, divergence)
    return Finding(NAME, loop, Verdict.PASS, f"{due} Euler steps on every rank", compared)
