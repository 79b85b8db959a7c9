"""Claim: the loop exchanges what its version calls for, on every rank alike, through the group that it was given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import TypeVar

import torch

from verify.checks import exchanged
from verify.checks.exchanged import Made, Wrong, is_warm_up
from verify.expected import VELOCITY, X_T, Call, Expected
from verify.layout import Layout
from verify.trace.exchange_log import Heard
from verify.trace.trace import Trace
from verify.verdict import Compared, Divergence, Finding, Verdict

NAME = "collectives"
_T = TypeVar("_T")


def collectives(traces: Sequence[Trace], expected: Expected | None, layout: Layout | None = None) -> Finding:
    """Compares each rank's exchanges, step by step: with what the schedule calls for, and with other ranks'.

    An exchange that passed beside the handed group fails, whoever made it, but for three: what an evaluation exchanges
    among the shards of one branch; a warm-up: before a rank's first evaluation it may call collectives of at most 16
    bytes, through the group or beside it; and what a target declares to exchange directly, which is then judged as if
    it had passed through the group.

    Args:
        traces: one a rank.
        expected: what the schedule calls for; None compares the ranks with each other alone.
        layout: of the ranks; None where each is a branch group of its own, as far as is known.
    """
    loop = traces[0].loop
    direct = expected is not None and expected.direct
    called = [exchanged.directly(t, layout) if direct else _without_warm_ups(t) for t in traces]
    # Steps that only one of them takes are compared too, with none.
    scheduled = () if expected is None else expected.collectives
    steps = max(len(scheduled), *(trace.steps for trace in traces))
    compared = Compared(steps, sum(len(step) for of_trace in called for step in of_trace))
    found = [*exchanged.unwaited(traces)]
    found += exchanged.astray(traces, layout) if direct else _beside(traces, layout)
    if expected is not None:
        found += _unexpected(traces, called, expected, steps)
        found += exchanged.misdirected(traces, called, expected, layout, steps) if direct else ()
    found += _unlike(traces, called, steps, layout)
    if found:
        # Of one step, what passed beside the group explains what is missing in it.
        wrong = min(found, key=lambda each: each.step)
        divergence = Divergence(wrong.step, (0, wrong.trace.rank), "collectives")
        details = (*wrong.details, *_totals(traces, called, expected))
        return Finding(NAME, loop, Verdict.FAIL, wrong.summary, compared, divergence, details)
    unseen = next((trace for trace in traces if trace.exchanges is None or (trace.unheard and not direct)), None)
    if not compared.elements:
        return Finding(NAME, loop, Verdict.UNKNOWN, "no collective was called: nothing ran in parallel", compared)
    if expected is None and len(traces) < 2:
        return Finding(NAME, loop, Verdict.UNKNOWN, "one rank has nobody to agree with", compared)
    if unseen is not None:
        return Finding(NAME, loop, Verdict.UNKNOWN, _of_unseen(unseen), compared)
    of_first = [c.name for step in called[0] for c in step]
    counts = ", ".join(f"{of_first.count(name)} {name}" for name in sorted(set(of_first)))
    how = "as computed from the schedule" if expected is not None else "alike on every rank"
    return Finding(NAME, loop, Verdict.PASS, f"{counts} on each rank, {how}", compared)


def _without_warm_ups(trace: Trace) -> tuple[tuple[Made, ...], ...]:
    warm_ups = {h.call for step in (trace.exchanges or ())[:1] for h in step if h.call is not None and is_warm_up(h)}
    return tuple(
        tuple(Made(*c) for number, c in enumerate(of_step, 1) if step or number not in warm_ups)
        for step, of_step in enumerate(trace.collectives)
    )


def _beside(traces: Sequence[Trace], layout: Layout | None) -> Iterator[Wrong]:
    """The first exchange of each rank that no call of the handed group stands for."""
    heard = [(trace, step, h) for trace in traces for step, all_of in enumerate(trace.exchanges or ()) for h in all_of]
    peers = {rank for _, _, h in heard if h.call is not None for rank in h.exchange.ranks}
    passed = [
        (trace, step, h)
        for trace, step, h in heard
        if h.call is None
        and not (step == 0 and is_warm_up(h))
        and not (exchanged.within_branch(h, trace, layout) if layout else peers and _of_one_branch(h, peers))
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
        yield Wrong(step, trace, f"rank {trace.rank} called {h.exchange} {where}, in step {step}", details)


def _of_one_branch(heard: Heard, peers: set[int]) -> bool:
    """Whether an evaluation made it among ranks that share a branch: of the handed group it reaches this rank alone."""
    return bool(heard.evaluating) and len(peers & set(heard.exchange.ranks)) == 1


def _unexpected(
    traces: Sequence[Trace], called: Sequence[Sequence[tuple[Made, ...]]], expected: Expected, steps: int
) -> Iterator[Wrong]:
    for step in range(steps):
        for trace, own in zip(traces, called, strict=True):
            seen, calls = _in_step(own, step), expected.of(trace.rank, step)
            if (names := tuple(c.name for c in seen)) != tuple(c.name for c in calls):
                due = _names([c.name for c in calls])
                yield Wrong(step, trace, f"rank {trace.rank} called {_names(names)} in step {step}, expected {due}")
            # By name: of one that is missing, the others are judged all the same.
            for call, c in _paired(calls, seen):
                meant = _meant(call, c, trace)
                if meant:
                    yield Wrong(step, trace, f"rank {trace.rank} called {c} in step {step}, expected {meant}")
                    break


def _paired(calls: Sequence[Call], seen: Sequence[Made]) -> Iterator[tuple[Call, Made]]:
    left = list(calls)
    for made in seen:
        call = next((call for call in left if call.name == made.name), None)
        if call is not None:
            left.remove(call)
            yield call, made


def _meant(call: Call, made: Made, trace: Trace) -> str:
    """What an exchange should have been, where it is not that."""
    elements = torch.Size(made.shape).numel()
    if call.of == X_T:
        # In no fewer bytes: a wider format or a view as other elements carries it too.
        held = trace.x_t[0] if len(trace.x_t) else trace.final  # Of a shard, which may return all of it.
        # A part of latents of several may be sent by itself.
        carries = elements * getattr(torch, made.dtype).itemsize >= held.nbytes or trace.packing is not None
        if not carries or made.src != call.src:
            dtype, shape = str(held.dtype).removeprefix("torch."), tuple(held.shape)
            source = "" if call.src is None else f", from rank {call.src}"
            return f"x_t, {dtype} {shape}{source}"
    if call.of == VELOCITY and trace.sent is not None and trace.sent.velocity is not None:
        dtype, shape = trace.sent.velocity
        whole = torch.Size(shape).numel()
        floats = all(getattr(torch, each).is_floating_point for each in (dtype, made.dtype))
        if not whole or not elements or elements % whole or not floats:
            return f"a velocity, {dtype} {shape}"
    return ""


def _unlike(
    traces: Sequence[Trace],
    called: Sequence[Sequence[tuple[Made, ...]]],
    steps: int,
    layout: Layout | None,
) -> Iterator[Wrong]:
    for step in range(steps):
        for trace, own in zip(traces, called, strict=True):
            # What a rank holds depends on its shard.
            like = 0 if layout is None else layout.peers(trace.rank)[0]
            if like >= len(called):
                continue
            ours, theirs = ([c for c in _in_step(each, step) if not c.is_between_two] for each in (called[like], own))
            if [c.alike for c in ours] != [c.alike for c in theirs]:
                pairs = zip_longest(ours, theirs)
                a, b = next((a, b) for a, b in pairs if (a and a.alike) != (b and b.alike))
                summary = (
                    f"in step {step} rank {traces[like].rank} called {a or 'nothing'} where rank {trace.rank} called "
                )
                yield Wrong(step, trace, f"{summary}{b or 'nothing'}")


def _of_unseen(trace: Trace) -> str:
    if trace.exchanges is None:
        return f"what rank {trace.rank} exchanged beside the group was not listened to"
    return (
        f"under {trace.unheard[0]} rank {trace.rank} exchanged less through PyTorch than that stands for; a "
        "group that works otherwise says how, see verify/trace/exchange_log.py"
    )


def _totals(
    traces: Sequence[Trace], called: Sequence[Sequence[tuple[Made, ...]]], expected: Expected | None
) -> tuple[str, ...]:
    counts = [Counter(c.name for step in own for c in step) for own in called]
    names = {name for own in counts for name in own}
    names |= {call.name for rank in expected.exchanges for step in rank for call in step} if expected else set()

    def told(name: str) -> str:
        if expected is None:
            return ""
        totals = [expected.total(name, trace.rank) for trace in traces]
        return f", expected {totals[0]}" if len(set(totals)) == 1 else f", expected {', '.join(map(str, totals))}"

    return tuple(
        f"in the whole loop, {name}: "
        + ", ".join(f"{own[name]} on rank {trace.rank}" for trace, own in zip(traces, counts, strict=True))
        + told(name)
        for name in sorted(names)
    )


def _names(collectives: Sequence[str]) -> str:
    return ", ".join(collectives) if collectives else "none"


def _in_step(collectives: Sequence[tuple[_T, ...]], step: int) -> tuple[_T, ...]:
    return collectives[step] if step < len(collectives) else ()
