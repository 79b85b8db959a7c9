"""Claim: ``x_t`` stays finite. Equal NaNs on every rank are no image."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from verify.bits import few_threads
from verify.trace.trace import Trace
from verify.verdict import Compared, Divergence, Finding, Verdict

NAME = "finite"


def finite(traces: Sequence[Trace]) -> Finding:
    """Looks for the first NaN or infinity in any rank's ``x_t``."""
    loop = traces[0].loop
    compared = Compared(len(traces[0].x_t), sum(trace.x_t.numel() for trace in traces))
    if not all(trace.steps and trace.final.numel() for trace in traces) or not compared.elements:
        return Finding(NAME, loop, Verdict.UNKNOWN, "a rank showed no x_t: there was nothing to look at")
    found = []
    for trace in traces:
        if not len(trace.x_t):
            continue  # Of a window beyond its last step.
        # One pass that allocates nothing: a NaN or an infinity anywhere shows in the least or the greatest value.
        with few_threads():
            extremes = trace.x_t.aminmax()
        if all(torch.isfinite(extreme) for extreme in extremes):
            continue
        bad = ~torch.isfinite(trace.x_t)
        where = bad.nonzero()[0].tolist()
        step = trace.first + where[0]
        found.append((step, trace.rank, tuple(where[1:]), trace, int(bad[where[0]].sum())))
    if not found:
        return Finding(NAME, loop, Verdict.PASS, "no NaN and no infinity in any x_t", compared)
    step, rank, index, trace, count = min(found, key=lambda f: f[:2])
    value = trace.after(step)[index].item()
    summary = f"rank {rank} holds {value} in x_t{list(index)} after step {step}"
    details = (f"{count} of {trace.final.numel()} elements are not finite there",)
    return Finding(NAME, loop, Verdict.FAIL, summary, compared, Divergence(step, (rank, rank), "x_t"), details)
