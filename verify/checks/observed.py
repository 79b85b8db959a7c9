"""Claim: what the loop shows is what it uses; without it, all other checks would judge a show."""

from __future__ import annotations

from collections.abc import Sequence

from verify.bits import first_difference, same_bits
from verify.layout import Layout
from verify.trace.trace import Trace
from verify.verdict import Compared, Divergence, Finding, Verdict

NAME = "observed"


def observed(traces: Sequence[Trace], layout: Layout | None = None) -> Finding:
    """The ``x_t`` that branches were evaluated at is the one observed before; the result is the last one observed.

    The network runs only as it is asked to through the denoiser, and for the step that the loop is in.
    """
    loop = traces[0].loop
    for trace in traces:
        if trace.breach:
            divergence = Divergence(len(trace.foreign), (trace.rank, trace.rank), "the loop's contract")
            summary = f"rank {trace.rank} broke the loop's contract in step {len(trace.foreign)}: {trace.breach}"
            return Finding(NAME, loop, Verdict.FAIL, summary, first_divergence=divergence)
    evaluations = sum(len(step) for trace in traces for step in trace.branches)
    elements = traces[0].final.numel()
    returned = sum(trace.steps - 1 in trace.kept for trace in traces)
    compared = Compared(traces[0].steps, (evaluations + returned) * elements)
    if not all(trace.steps for trace in traces):
        return Finding(NAME, loop, Verdict.UNKNOWN, "a rank showed no step: there was nothing to compare")
    for step in range(max(trace.steps for trace in traces)):
        for trace in traces:
            if step < len(trace.foreign) and trace.foreign[step]:
                summary = (
                    f"rank {trace.rank} evaluated step {step} at an x_t that is not the one observed before it "
                    f"({trace.foreign[step]} elements differ)"
                )
                divergence = Divergence(step, (trace.rank, trace.rank), "x_t evaluated", ("observed", "evaluated"))
                return Finding(NAME, loop, Verdict.FAIL, summary, compared, divergence)
        found = _unseen_use(traces, step)
        if found is not None:
            trace, what, tensor = found
            divergence = Divergence(step, (trace.rank, trace.rank), tensor, ("observed", "evaluated"))
            return Finding(NAME, loop, Verdict.FAIL, f"rank {trace.rank} {what}", compared, divergence)
    for trace in traces:
        last = trace.after(trace.steps - 1) if trace.steps - 1 in trace.kept else trace.final
        final = trace.final
        if layout is not None and final.shape != last.shape:  # A loop may return all of x_t.
            final = layout.part(final, layout.of(trace.rank).shard)
        if not same_bits(last, final):
            summary = f"rank {trace.rank} returned another latent than the one observed after step {trace.steps - 1}"
            divergence = Divergence(
                trace.steps - 1,
                (trace.rank, trace.rank),
                "the final latent",
                ("observed", "returned"),
                first_difference(last, final),
            )
            return Finding(NAME, loop, Verdict.FAIL, summary, compared, divergence)
    return Finding(NAME, loop, Verdict.PASS, "the x_t observed is the x_t evaluated and returned", compared)


def _unseen_use(traces: Sequence[Trace], step: int) -> tuple[Trace, str, str] | None:
    """A rank that had the network compute something else than it asked for openly in ``step``."""
    for trace in traces:
        if step < len(trace.beside) and trace.beside[step]:
            what = f"ran the network in step {step} without asking its denoiser, so that what it computed was not seen"
            return trace, what, "evaluations beside the denoiser"
        asked = trace.asked[step] if step < len(trace.asked) else ()
        other = next((number for number in asked if number != step), None)
        if other is not None:
            return trace, f"asked for the velocity of step {other} in step {step}", "step evaluated"
    return None
