"""Claim: every pass over the loop computed the same, so that its windows of steps are parts of one whole."""

from __future__ import annotations

from collections.abc import Sequence

from verify.bits import same_bits
from verify.trace.trace import Trace
from verify.verdict import Compared, Finding, Verdict

NAME = "windows_agree"


def windows_agree(passes: Sequence[Sequence[Trace]]) -> Finding:
    """Compares what each rank began with and returned in every pass with the first pass.

    A loop that does not repeat itself has done nothing wrong yet; but what each window shows is then of another run,
    and what holds in all windows need not have held in any one run: unknown, not a failure.

    Args:
        passes: the traces of one loop, one a rank, in rank order; one sequence a pass. Only start and final are read.
    """
    first, *others = passes
    loop = first[0].loop
    compared = Compared(first[0].steps, sum(2 * trace.final.numel() for traces in others for trace in traces))
    for number, traces in enumerate(others, start=1):
        for a, b in zip(first, traces, strict=True):
            both = a.start is not None and b.start is not None
            same_start = same_bits(a.start, b.start) if both else a.start is b.start  # type: ignore[arg-type]
            if not (same_start and a.steps == b.steps and same_bits(a.final, b.final)):
                summary = (
                    f"{a.name} computed otherwise in pass {number} than in pass 0: the loop does not repeat itself, so "
                    "its windows are not those of one run; judge it without --window"
                )
                return Finding(NAME, loop, Verdict.UNKNOWN, summary, compared)
    if not compared.elements:
        return Finding(NAME, loop, Verdict.UNKNOWN, "one pass has no other to agree with", compared)
    return Finding(NAME, loop, Verdict.PASS, f"{len(passes)} passes began and ended with the same bytes", compared)
