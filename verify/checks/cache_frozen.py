"""Claim: the contexts are equal on all ranks and nothing writes to them while denoising."""

from __future__ import annotations

from collections.abc import Sequence

from verify.layout import Layout
from verify.trace.trace import Trace
from verify.verdict import Compared, Divergence, Finding, Verdict

NAME = "cache_frozen"


def cache_frozen(traces: Sequence[Trace], layout: Layout | None = None) -> Finding:
    """Compares each context's digests across ranks that hold the same part of it, then before with after the loop."""
    loop, first = traces[0].loop, traces[0]
    compared = Compared(first.steps, sum(record.elements for trace in traces for record in trace.caches))
    if not compared.elements:
        return Finding(NAME, loop, Verdict.UNKNOWN, "no context holds a cache: there was nothing to freeze", compared)
    for trace in traces[1:]:
        like = traces[0 if layout is None else layout.like(trace.rank)]
        for ours, theirs in zip(like.caches, trace.caches, strict=False):
            if (ours.branch, ours.tensor, ours.elements, ours.before) != (
                theirs.branch,
                theirs.tensor,
                theirs.elements,
                theirs.before,
            ):
                what = f"{ours.branch} cache, {ours.tensor}"
                summary = f"rank {like.rank} and rank {trace.rank} began with different bytes in {what}"
                divergence = Divergence(-1, (like.rank, trace.rank), what)
                digests = (
                    f"SHA-256 {ours.before} on rank {like.rank}",
                    f"SHA-256 {theirs.before} on rank {trace.rank}",
                )
                return Finding(NAME, loop, Verdict.FAIL, summary, compared, divergence, digests)
        if len(like.caches) != len(trace.caches):
            held = f"rank {like.rank} holds {len(like.caches)} cache tensors"
            summary = f"{held}, rank {trace.rank} {len(trace.caches)}"
            divergence = Divergence(-1, (like.rank, trace.rank), "caches")
            return Finding(NAME, loop, Verdict.FAIL, summary, compared, divergence)
    written = [(trace, record) for trace in traces for record in trace.caches if record.after != record.before]
    touched = [(trace, record) for trace in traces for record in trace.caches if record.touched_at is not None]
    if not written and touched:
        trace, record = min(touched, key=lambda found: found[1].touched_at or 0)
        what = f"{record.branch} cache, {record.tensor}"
        divergence = Divergence(record.touched_at, (trace.rank, trace.rank), what, ("before", "after"))
        summary = f"rank {trace.rank} wrote to {what} in step {record.touched_at} and put it right before the end"
        shared = (f"{len(touched)} cache tensors share the memory that was written to",)
        return Finding(NAME, loop, Verdict.FAIL, summary, compared, divergence, shared)
    if not written:
        summary = f"{len(first.caches)} cache tensors equal on every rank, before and after"
        return Finding(NAME, loop, Verdict.PASS, summary, compared)
    trace, record = min(written, key=lambda w: (w[1].written_at is None, w[1].written_at or 0))
    what = f"{record.branch} cache, {record.tensor}"
    when = "during the loop" if record.written_at is None else f"in step {record.written_at}"
    divergence = Divergence(record.written_at, (trace.rank, trace.rank), what, ("before", "after"), record.difference)
    # By identity: the same write on another rank is an equal record.
    others = [(t, r) for t, r in written if r is not record]
    details = tuple(f"also written on rank {t.rank}: {r.branch} cache, {r.tensor}" for t, r in others)
    summary = f"rank {trace.rank} wrote to {what} {when}"
    return Finding(NAME, loop, Verdict.FAIL, summary, compared, divergence, details)
