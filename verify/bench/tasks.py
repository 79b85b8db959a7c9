"""What ranks do for the benchmark."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from verify.bagel.denoiser import BagelDenoiser
from verify.bench.ceiling import forward_flops, matmul_rate, median_seconds
from verify.bench.stopwatch import Stopwatch, TimedDenoiser, TimedGroup
from verify.protocols import Denoiser
from verify.ranks.worker import Rank
from verify.targets.protocol import REFERENCE
from verify.targets.session import Plan, autocast, find_loop, group_for, prepare, request_for
from verify.trace import synchronise


@dataclass(frozen=True)
class Timing:
    """One loop on one rank, in seconds.

    Attributes:
        total: the whole loop, device included.
        spans: every evaluation and collective, in order.
    """

    total: float
    spans: dict[str, list[float]]


def timed_loop(rank: Rank, plan: Plan, split: bool) -> Timing | None:
    """Runs a loop bare: nothing is recorded; ``split`` puts events around evaluations and collectives.

    The reference runs on rank 0 alone; the others return None.
    """
    prepared, _ = prepare(rank, plan)  # On every rank: a target may make process groups in it.
    if plan.loop == REFERENCE and rank.rank:
        return None
    loop, request = find_loop(plan), request_for(plan, prepared, rank)
    denoiser: Denoiser = prepared.denoiser
    group = group_for(plan, prepared, rank)
    watch = Stopwatch(rank.device)
    if split:
        denoiser, group = TimedDenoiser(denoiser, watch), TimedGroup(group, watch)
    with torch.no_grad(), autocast(plan.options, rank.device):
        x_0 = prepared.x_0.clone()
        synchronise(rank.device)
        began = time.perf_counter()
        loop(denoiser, request, x_0, group, lambda step, x_t: None)
        synchronise(rank.device)
        total = time.perf_counter() - began
    return Timing(total, watch.seconds())


def forward_against_ceiling(rank: Rank, plan: Plan, rounds: int) -> dict[str, Any] | None:
    """On rank 0 of a GPU pool: a forward pass of gen beside a large product, in turn, so that both meet one clock.

    Returns:
        ``forward_s``, ``flops``, ``matmul_flops_per_s`` (medians over the rounds) and ``ratio``: the forward pass's
        time over that of its floating-point operations at the product's rate. None on the other ranks.
    """
    if rank.rank:
        return None
    prepared, _ = prepare(rank, plan)
    denoiser = prepared.denoiser
    assert isinstance(denoiser, BagelDenoiser)
    flops = forward_flops(denoiser.model.config, plan.request.tokens, denoiser.contexts["gen"].keys.shape[2])
    forwards, rates = [], []
    with torch.no_grad():
        for _ in range(rounds):
            forwards.append(
                median_seconds(lambda: denoiser.velocity(prepared.x_0, 0, "gen"), rank.device, runs=8, warm_up=2)
            )
            rates.append(matmul_rate(rank.device, plan.options.torch_dtype, runs=80))
    forward, rate = sorted(forwards)[rounds // 2], sorted(rates)[rounds // 2]
    return {
        "tokens": plan.request.tokens,
        "forward_s": forward,
        "flops": flops,
        "matmul_flops_per_s": rate,
        "ratio": forward * rate / flops,
        "forwards_s": forwards,
        "matmul_rates": rates,
    }
