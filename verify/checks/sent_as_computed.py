"""Claim: what enters each gather, or sum over ranks, is what the network returned, or loses nothing of it."""

from __future__ import annotations

from collections.abc import Sequence

from verify.trace.trace import Trace
from verify.verdict import Compared, Divergence, Finding, Verdict

NAME = "sent_as_computed"


def sent_as_computed(traces: Sequence[Trace]) -> Finding:
    """Tells the first gather, in order of steps, that was given anything but what the rank's network had returned.

    What loses nothing: another shape with the same elements in the same order, a view as other elements of the same
    bytes, a float format that holds the same values, several velocities at once, or one in successive pieces. Where a
    target's loops send something else on purpose, ``Prepared.sends`` says what. A sum is given the velocity times one
    number; which number it should be is judged where ``Prepared.sends`` says it.
    """
    loop = traces[0].loop
    seen = [(trace, trace.sent) for trace in traces if trace.sent is not None]
    compared = Compared(max(trace.steps for trace in traces), sum(sent.elements for _, sent in seen))
    unlike = [(sent.step, trace, sent) for trace, sent in seen if sent.step is not None]
    if unlike:
        step, trace, sent = min(unlike, key=lambda found: (found[0], found[1].rank))
        times = " times one number" if sent.weight is not None else ""
        what = f"{sent.given} that is not the velocity of {sent.branch}{times}" + (
            "" if sent.given == sent.due else f", which is {sent.due}"
        )
        summary = f"rank {trace.rank} sent {what}, in step {step}"
        divergence = Divergence(step, (trace.rank, trace.rank), f"velocity of {sent.branch} as sent",
                                ("returned", "sent"), sent.difference)  # fmt: skip
        details = tuple(
            f"rank {trace.rank} sent something else than it had computed in {sent.unlike} of {sent.gathers} gathers"
            for _, trace, sent in unlike
        )
        return Finding(NAME, loop, Verdict.FAIL, summary, compared, divergence, details)
    idle = [trace.rank for trace in traces if trace.sent is None or not trace.sent.elements]
    if idle:
        summary = f"rank {idle[0]} gathered nothing that it had computed"
        return Finding(NAME, loop, Verdict.UNKNOWN, summary, compared)
    least = min((sent for _, sent in seen), key=lambda sent: sent.gathers)
    gathers = least.gathers - least.sums
    counts = [f"{gathers} gathers"] if gathers else []
    counts += [f"{least.sums} sums"] if least.sums else []
    summary = f"{' and '.join(counts)} on each rank were given what the network had returned"
    if least.weight is not None:
        weights = ", ".join(f"{sent.weight:g} on rank {t.rank}" for t, sent in seen if sent.weight is not None)
        summary += f" times one number, first {weights}; whether these are right, the sum shows in matches_reference"
    return Finding(NAME, loop, Verdict.PASS, summary, compared)
