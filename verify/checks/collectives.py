"""Claim: the loop exchanges what its version calls for, on every rank alike, through the group that it was given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import NamedTuple, TypeVar

import torch

from verify.schedule import BROADCAST, Expected
from verify.trace.exchange_log import Heard
from verify.trace.trace import Collective, Trace
from verify.verdict import Compared, Divergence, Finding, Verdict

NAME = "collectives"
# A rank has nothing to hide in so few bytes before it has evaluated anything.
WARM_UP_BYTES = 16

_T = TypeVar("_T")


class _Wrong(NamedTuple):
    """Something found, in a step, on a rank."""

    step: int
    trace: Trace
    summary: str
    details: tuple[str, ...] = ()


def collectives(traces: Sequence[Trace], expected: Expected | None) -> Finding:
    """Compares each rank's exchanges, step by step: with what the schedule calls for, and with rank 0's.

    An exchange that passed beside the handed group fails, whoever made it, but for two: what an evaluation exchanges
    among ranks of which no other is in the handed group (shards of one branch), and a warm-up: before a rank's first
    evaluation it may call collectives of at most 16 bytes, through the group or beside it.

    Args:
        traces: one a rank.
        expected: what the schedule calls for; None compares the ranks with each other alone.
    """
    loop, first = traces[0].loop, traces[0]
    called = [_without_warm_ups(trace) for trace in traces]
    # Steps that only one of them takes are compared too, with none.
    scheduled = () if expected is None else expected.collectives
    steps = max(len(scheduled), *(trace.steps for trace in traces))
    compared = Compared(steps, sum(len(step) for trace in traces for step in trace.collectives))
    found = [*_beside(traces)]
    if expected is not None:
        found += _unexpected(traces, called, scheduled, steps)
    found += _unlike(traces, called, steps)
    if found:
        # Of one step, what passed beside the group explains what is missing in it.
        wrong = min(found, key=lambda each: each.step)
        divergence = Divergence(wrong.step, (0, wrong.trace.rank), "collectives")
        details = (*wrong.details, *_totals(traces, expected))
        return Finding(NAME, loop, Verdict.FAIL, wrong.summary, compared, divergence, details)
    unseen = next((trace for trace in traces if trace.exchanges is None or trace.unheard), None)
    if not compared.elements:
        return Finding(NAME, loop, Verdict.UNKNOWN, "no collective was called: nothing ran in parallel", compared)
    if expected is None and len(traces) < 2:
        return Finding(NAME, loop, Verdict.UNKNOWN, "one rank has nobody to agree with", compared)
    if unseen is not None:
        return Finding(NAME, loop, Verdict.UNKNOWN, _of_unseen(unseen), compared)
    counts = ", ".join(f"{first.count(name)} {name}" for name in sorted({c.name for s in first.collectives for c in s}))
    how = "as computed from the schedule" if expected is not None else "alike on every rank"
    return Finding(NAME, loop, Verdict.PASS, f"{counts} on each rank, {how}", compared)


def is_warm_up(heard: Heard) -> bool:
    """Whether an exchange may set up a communicator and do nothing else."""
    exchange = heard.exchange
    return heard.before_evaluating and exchange.size <= WARM_UP_BYTES and exchange.name not in ("send", "recv")


def _without_warm_ups(trace: Trace) -> tuple[tuple[Collective, ...], ...]:
    warm_ups = {h.call for step in (trace.exchanges or ())[:1] for h in step if h.call is not None and is_warm_up(h)}
    if not warm_ups:
        return trace.collectives
    kept = tuple(c for number, c in enumerate(trace.collectives[0], 1) if number not in warm_ups)
    return kept, *trace.collectives[1:]


def _beside(traces: Sequence[Trace]) -> Iterator[_Wrong]:
    """The first exchange of each rank that no call of the handed group stands for."""
    heard = [(trace, step, h) for trace in traces for step, all_of in enumerate(trace.exchanges or ()) for h in all_of]
    peers = {rank for _, _, h in heard if h.call is not None for rank in h.exchange.ranks}
    passed = [
        (trace, step, h)
        for trace, step, h in heard
        if h.call is None and not (step == 0 and is_warm_up(h)) and not (peers and _of_one_branch(h, peers))
    ]
    counts = ", ".join(f"{sum(t is trace for t, _, _ in passed)} on rank {trace.rank}" for trace in traces)
    for trace in traces:
        step, h = next(((step, h) for t, step, h in passed if t is trace), (0, None))
        if h is None:
            continue
        where = f"within {h.within}, beside what that stands for" if h.within else "beside the group it was given"
        ranks = ", ".join(map(str, h.exchange.ranks))
        details = (
            f"it ran over PyTorch's group {h.exchange.group} of ranks {ranks}"
            + (f", while {h.evaluating} was evaluated" if h.evaluating else ""),
            f"in the whole loop, beside the group: {counts}",
        )
        yield _Wrong(step, trace, f"rank {trace.rank} called {h.exchange} {where}, in step {step}", details)


def _of_one_branch(heard: Heard, peers: set[int]) -> bool:
    """Whether an evaluation made it among ranks that share a branch: of the handed group it reaches this rank alone."""
    return bool(heard.evaluating) and len(peers & set(heard.exchange.ranks)) == 1


def _unexpected(
    traces: Sequence[Trace],
    called: Sequence[Sequence[tuple[Collective, ...]]],
    scheduled: Sequence[tuple[str, ...]],
    steps: int,
) -> Iterator[_Wrong]:
    for step in range(steps):
        due = _in_step(scheduled, step)
        for trace, own in zip(traces, called, strict=True):
            seen = _in_step(own, step)
            if (names := tuple(c.name for c in seen)) != due:
                summary = f"rank {trace.rank} called {_names(names)} in step {step}, expected {_names(due)}"
                yield _Wrong(step, trace, summary)
            wrong = next((c for c in seen if c.name == BROADCAST and not _carries_x_t(c, trace)), None)
            if wrong is not None:
                x_t = f"{str(trace.final.dtype).removeprefix('torch.')} {tuple(trace.final.shape)}"
                summary = f"rank {trace.rank} called {wrong} in step {step}, expected x_t, {x_t}, from rank 0"
                yield _Wrong(step, trace, summary)


def _carries_x_t(collective: Collective, trace: Trace) -> bool:
    """From rank 0, in no fewer bytes: a wider format or a view as other elements carries it too."""
    elements = torch.Size(collective.shape).numel()
    return collective.src == 0 and elements * getattr(torch, collective.dtype).itemsize >= trace.final.nbytes


def _unlike(
    traces: Sequence[Trace], called: Sequence[Sequence[tuple[Collective, ...]]], steps: int
) -> Iterator[_Wrong]:
    for step in range(steps):
        for trace, own in zip(traces[1:], called[1:], strict=True):
            ours, theirs = _in_step(called[0], step), _in_step(own, step)
            if ours != theirs:
                a, b = next((a, b) for a, b in zip_longest(ours, theirs) if a != b)
                yield _Wrong(
                    step,
                    trace,
                    f"in step {step} rank 0 called {a or 'nothing'} where rank {trace.rank} called {b or 'nothing'}",
                )


def _of_unseen(trace: Trace) -> str:
    if trace.exchanges is None:
        return f"what rank {trace.rank} exchanged beside the group was not listened to"
    return (
        f"under {trace.unheard[0]} rank {trace.rank} exchanged less through PyTorch than that stands for; a "
        "group that works otherwise says how, see verify/trace/exchange_log.py"
    )


def _totals(traces: Sequence[Trace], expected: Expected | None) -> tuple[str, ...]:
    names = {c.name for trace in traces for step in trace.collectives for c in step}
    names |= {name for step in expected.collectives for name in step} if expected else set()
    return tuple(
        f"in the whole loop, {name}: "
        + ", ".join(f"{trace.count(name)} on rank {trace.rank}" for trace in traces)
        + (f", expected {expected.total(name)}" if expected else "")
        for name in sorted(names)
    )


def _names(collectives: Sequence[str]) -> str:
    return ", ".join(collectives) if collectives else "none"


def _in_step(collectives: Sequence[tuple[_T, ...]], step: int) -> tuple[_T, ...]:
    return collectives[step] if step < len(collectives) else ()
