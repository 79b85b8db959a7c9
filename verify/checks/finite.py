"""Claim: ``x_t`` stays finite. Equal NaNs on every rank are no image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

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
        parts = {"": trace.x_t} if trace.packing is None else trace.packing.unpacked(trace.x_t)
        for name, x_t in parts.items():
            if not len(x_t) or _is_finite(x_t):
                continue  # Or of a window beyond the trace's last step.
            bad = ~torch.isfinite(_of_floats(x_t))
            place, *index = bad.nonzero()[0].tolist()
            called = f"x_t of {name}" if name else "x_t"
            value = x_t[place][tuple(index)].item()
            found.append((trace.first + place, trace.rank, called, index, value, int(bad[place].sum()), bad[0].numel()))
    if not found:
        return Finding(NAME, loop, Verdict.PASS, "no NaN and no infinity in any x_t", compared)
    step, rank, called, index, value, count, of = min(found, key=lambda each: each[:2])
    summary = f"rank {rank} holds {value} in {called}{index} after step {step}"
    details = (f"{count} of {of} elements are not finite there",)
    return Finding(NAME, loop, Verdict.FAIL, summary, compared, Divergence(step, (rank, rank), called), details)


def _is_finite(x_t: Tensor) -> bool:
    """In one pass that allocates nothing: a NaN or an infinity anywhere shows in the least or the greatest value."""
    with few_threads():
        numbers = torch.view_as_real(x_t) if x_t.is_complex() else _of_floats(x_t)
        return all(bool(torch.isfinite(extreme)) for extreme in numbers.aminmax())


def _of_floats(x_t: Tensor) -> Tensor:
    """Formats of 8 bits have no operators: in float32, which holds each of their numbers."""
    return x_t.float() if x_t.is_floating_point() and x_t.element_size() == 1 else x_t
