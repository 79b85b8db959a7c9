"""Claim: ``x_t`` stays finite. Equal NaNs on every rank are no image."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from verify.trace import Trace
from verify.verdict import Compared, Divergence, Finding, Verdict

NAME = "finite"


def finite(traces: Sequence[Trace]) -> Finding:
    """Looks for the first NaN or infinity in any rank's ``x_t``."""
    loop = traces[0].loop
    compared = Compared(traces[0].steps, sum(trace.x_t.numel() for trace in traces))
    if not all(trace.x_t.numel() for trace in traces):
        return Finding(NAME, loop, Verdict.UNKNOWN, "a rank showed no x_t: there was nothing to look at")
    found = []
    for trace in traces:
        # One pass that allocates nothing: a NaN or an infinity anywhere shows in the least or the greatest value.
        if all(torch.isfinite(extreme) for extreme in trace.x_t.aminmax()):
            continue
        bad = ~torch.isfinite(trace.x_t)
        where = bad.nonzero()[0].tolist()
        found.append((where[0], trace.rank, tuple(where[1:]), trace, int(bad[where[0]].sum())))
    if not found:
        return Finding(NAME, loop, Verdict.PASS, "no NaN and no infinity in any x_t", compared)
    step, rank, index, trace, count = min(found, key=lambda f: f[:2])
    value = trace.x_t[step][index].item()
    summary = f"rank {rank} holds {value} in x_t{list(index)} after step {step}"
    details = (f"{count} of {trace.x_t[step].numel()} elements are not finite there",)
    return Finding(NAME, loop, Verdict.FAIL, summary, compared, Divergence(step, (rank, rank), "x_t"), details)
