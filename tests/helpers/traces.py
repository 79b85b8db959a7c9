"""Clean traces made by hand, for a test to damage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from verify.bits import bits_of
from verify.checks.judging import Evidence, LoopRun, judge
from verify.expected import expected_work
from verify.request import DenoiseRequest
from verify.schedule import ALL_GATHER, BROADCAST
from verify.trace.caches import CacheRecord
from verify.trace.exchange_log import Heard
from verify.trace.exchanges import Exchange
from verify.trace.payloads import Sent
from verify.trace.sensitivity import Sensitivity
from verify.trace.state import StateRecord
from verify.trace.trace import Collective, Trace
from verify.verdict import Finding, Verdict

TOKENS, CHANNELS = 4, 3
ELEMENTS = TOKENS * CHANNELS
SHAPE = f"({TOKENS}, {CHANNELS})"
# 8 points shifted by 3: t = 1, 18/19, 15/17, 4/5, 9/13, 6/11, 1/3. The last step lies below the interval.
STEPS, GUIDED_STEPS = 7, 6


def small_request(ranks: int = 2, **changes: Any) -> DenoiseRequest:
    """A request of 7 steps, 6 of them guided, with one branch for each of 1, 2 or 3 ranks."""
    scales = {"cfg_text_scale": 4.0 if ranks > 1 else 1.0, "cfg_img_scale": 1.5 if ranks > 2 else 1.0}
    return DenoiseRequest(**{"height": 32, "width": 32, "num_timesteps": 8, **scales, **changes})


def clean(
    request: DenoiseRequest, kind: str = "local", ranks: int | None = None, loop: str | None = None
) -> list[Trace]:
    """One trace a rank of a loop that did everything right; no two share memory."""
    ranks = len(request.branches) if ranks is None else ranks
    due = expected_work(kind, request.schedule, request.branches, ranks)
    start, *after = torch.randn(
        request.schedule.steps + 1, TOKENS, CHANNELS, generator=torch.Generator().manual_seed(request.seed)
    )

    def collective(name: str) -> Collective:
        return Collective(name, "float32", (TOKENS, CHANNELS), 0 if name == BROADCAST else None)

    return [
        Trace(
            loop=loop or kind,
            rank=rank,
            world_size=ranks,
            start=start.clone() if due.branches[rank][0] else None,
            x_t=torch.stack(after),
            final=after[-1].clone(),
            branches=due.branches[rank],
            foreign=(0,) * len(after),
            collectives=tuple(tuple(map(collective, step)) for step in due.collectives),
            caches=tuple(cache(branch, layer) for branch in request.branches for layer in range(2)),
            exchanges=tuple(tuple(heard_as(ranks, step)) for step in due.collectives),
            sent=sent(due.collectives) if ranks > 1 else Sent(),
            environment={
                "torch": "2.13.0",
                "threads": 1,
                "host": f"node{rank}",
                "gpu_index": rank,
                "gpu_uuid": f"{rank}",
            },
            seconds=1.0 + rank,
            noise=f"noise of rank {rank}",
            state=StateRecord({"weights": "w", "contexts": "c", "hooks": "h"}, (), 100),
        )
        for rank in range(ranks)
    ]


def heard_as(ranks: int, names: Sequence[str]) -> Iterator[Heard]:
    """One exchange for each of a step's calls of the handed group."""
    for number, name in enumerate(names, 1):
        src = 0 if name == BROADCAST else None
        exchange = Exchange(name, "float32", (TOKENS, CHANNELS), 4 * ELEMENTS, "0", tuple(range(ranks)), src)
        yield Heard(exchange, number, f"{name} {number}")


def sent(collectives: Sequence[Sequence[str]]) -> Sent:
    """What entered the gathers was what the network had returned."""
    gathers = sum(step.count(ALL_GATHER) for step in collectives)
    return Sent(gathers, gathers * ELEMENTS)


def reference(request: DenoiseRequest) -> Trace:
    """The trace of the loop in one process."""
    (trace,) = clean(request, "reference", 1)
    return trace


def evidence(of_reference: Trace | None = None) -> Evidence:
    """What findings rest on besides: a network to which all its inputs matter."""
    return Evidence(of_reference, Sensitivity(guided=True))


def cache(branch: str, layer: int) -> CacheRecord:
    """A cache tensor that nobody wrote to."""
    digest = sha256(f"{branch} {layer}".encode()).hexdigest()
    return CacheRecord(branch, f"keys, layer {layer}", 24, digest, digest)


def changed(traces: Sequence[Trace], rank: int, **fields: Any) -> list[Trace]:
    """The same traces with other fields on one rank."""
    return [replace(trace, **fields) if trace.rank == rank else trace for trace in traces]


def swapped(entries: tuple[Any, ...], at: int, entry: Any) -> tuple[Any, ...]:
    """The same entries with another one at ``at``."""
    return (*entries[:at], entry, *entries[at + 1 :])


def flip(tensor: Tensor, index: tuple[int, ...], bit: int = 0) -> None:
    """Flips one bit of one element in place."""
    view = bits_of(tensor)
    sign = 8 * view.element_size() - 1
    view[index] ^= -(1 << bit) if bit == sign else 1 << bit


def cut(trace: Trace, steps: int) -> Trace:
    """The same trace, ended early."""
    fields: dict[str, Any] = {
        name: getattr(trace, name)[:steps] for name in ("x_t", "branches", "foreign", "collectives", "exchanges")
    }
    return replace(trace, final=trace.x_t[steps - 1], **fields)


def extended(trace: Trace, called: Sequence[Collective] = (), evaluated: Sequence[str] = ("gen",)) -> Trace:
    """The same trace with a step more."""
    return replace(
        trace,
        x_t=torch.cat([trace.x_t, trace.x_t[-1:]]),
        branches=(*trace.branches, tuple(evaluated)),
        foreign=(*trace.foreign, 0),
        collectives=(*trace.collectives, tuple(called)),
        exchanges=(*(trace.exchanges or ()), ()),
    )


def verdicts(findings: Sequence[Finding]) -> dict[str, Verdict]:
    """What each check says, by its name."""
    return {finding.name: finding.verdict for finding in findings}


def judged(request: DenoiseRequest, traces: Sequence[Trace], expect: str = "local") -> dict[str, Finding]:
    """What each check says of one loop, with a clean reference."""
    findings = judge(request, {traces[0].loop: LoopRun(traces, expect)}, evidence(reference(request)))
    assert {finding.loop for finding in findings} == {traces[0].loop, "*"}
    return {finding.name: finding for finding in findings}
