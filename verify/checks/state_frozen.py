"""Claim: the loop leaves weights, buffers, contexts and functions as it found them.

What judges may not be touched by what is judged: a loop that spoils the network under the reference would be compared
with its own damage.

A hook that a loop leaves on a module is told and fails nothing: engines hook networks to profile and to cast. What it
changes shows in the loop's own bytes, and the next loop runs in ranks that it never reached.
"""

from __future__ import annotations

from collections.abc import Sequence

from verify.layout import Layout
from verify.trace.state import HOOKS, WEIGHTS, Change
from verify.trace.trace import Trace
from verify.verdict import Compared, Divergence, Finding, Verdict

NAME = "state_frozen"


def state_frozen(traces: Sequence[Trace], layout: Layout | None = None) -> Finding:
    """Judges what each rank's state became, then compares the weights of ranks that hold the same part of them."""
    loop, first = traces[0].loop, traces[0]
    records = [(trace, trace.state) for trace in traces if trace.state is not None]
    compared = Compared(first.steps, sum(state.elements for _, state in records))
    if len(records) < len(traces) or not compared.elements:
        return Finding(NAME, loop, Verdict.UNKNOWN, "no weights and no contexts were seen", compared)
    changed = [(trace.rank, change) for trace, state in records for change in state.changes]
    left = tuple(f"rank {rank} {_words(change)}" for rank, change in changed if change.part == HOOKS)
    if any(change.part != HOOKS for _, change in changed):
        changed.sort(key=lambda found: (found[1].part == HOOKS, found[1].step is None, found[1].step or 0))
        rank, change = changed[0]
        everyone = {r for r, c in changed if c.part == change.part and c.name == change.name}
        who = f"rank {rank}" if len(everyone) < len(traces) else "every rank"
        divergence = Divergence(change.step, (rank, rank), f"{change.part}: {change.name}", ("before", "after"))
        details = tuple(f"also: rank {r} {_words(c)}" for r, c in changed if (r, c) != (rank, change))
        return Finding(NAME, loop, Verdict.FAIL, f"{who} {_words(change)}", compared, divergence, details)
    for trace, state in records:
        if state.differs:
            summary = (
                f"rank {trace.rank} began with other {', '.join(state.differs)} than the first loop in its process did"
            )
            return Finding(NAME, loop, Verdict.UNKNOWN, summary, compared)
    for trace, state in records[1:]:
        like, reference = records[0 if layout is None else layout.like(trace.rank)]
        if state.before[WEIGHTS] != reference.before[WEIGHTS]:
            summary = f"rank {like.rank} and rank {trace.rank} hold different weights"
            divergence = Divergence(None, (like.rank, trace.rank), "weights")
            return Finding(NAME, loop, Verdict.FAIL, summary, compared, divergence)
    summary = "weights, contexts and functions were the same before and after the loop"
    return Finding(NAME, loop, Verdict.PASS, summary, compared, details=left)


def _words(change: Change) -> str:
    when = "during the loop" if change.step is None else f"in step {change.step}"
    end = "" if change.lasting else ", and put them right before the end"
    return f"changed its {change.part} {when}: {change.name}{end}"
