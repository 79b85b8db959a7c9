"""What ranks do for the benchmark."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch

from verify.bagel.denoiser import BagelDenoiser
from verify.bagel.graphs import GraphedDenoiser, Recording, unlike
from verify.bench.ceiling import forward_flops, matmul_rate, median_seconds
from verify.bench.stopwatch import Stopwatch, Timed
from verify.protocols import Denoiser, State
from verify.ranks.rank import Rank
from verify.schedule import Schedule
from verify.tasks.stage import Plan, Stage
from verify.trace.device import synchronise
from verify.trace.listener import HeardDenoiser, HeardGroup


@dataclass(frozen=True)
class Timing:
    """One loop on one rank, in seconds.

    Attributes:
        total: the whole loop, device included.
        spans: every evaluation, collective and combine, in order.
    """

    total: float
    spans: dict[str, list[float]]


def prepare_point(rank: Rank, plan: Plan, graph: bool) -> dict[str, Any]:
    """Builds the denoiser and, if asked, records its forward passes as CUDA graphs and compares their bits.

    Returns:
        ``seconds`` that the denoiser took, the model under it included where it was not there yet; and with ``graph``
        ``graph_s`` and ``graph_fault``: why graphs cannot be used, empty if they can.
    """
    rank.memo.pop("graphed", None)
    began = time.perf_counter()
    prepared = Stage.of(rank, plan).prepared
    synchronise(rank.device)
    done: dict[str, Any] = {"seconds": time.perf_counter() - began}
    if not graph:
        return done
    rank.status.activity("recording CUDA graphs")
    began = time.perf_counter()
    try:
        with torch.no_grad():
            assert isinstance(prepared.denoiser, BagelDenoiser)
            assert isinstance(prepared.x_0, torch.Tensor)
            graphed = GraphedDenoiser(prepared.denoiser, Recording(prepared.denoiser, prepared.x_0))
            others = unlike(prepared.denoiser, graphed, prepared.x_0, plan.request.schedule.steps)
    except RuntimeError as error:
        return done | {"graph_s": time.perf_counter() - began, "graph_fault": f"not recorded: {error}"[:500]}
    rank.memo["graphed"] = graphed
    fault = f"other bits than the eager forward pass: {', '.join(others)}" if others else ""
    return done | {"graph_s": time.perf_counter() - began, "graph_fault": fault}


def timed_loop(
    rank: Rank, plan: Plan, split: bool, graph: bool = False, steps: int | None = None, again: bool = False
) -> Timing | None:
    """Runs a loop bare: nothing is recorded; ``split`` puts events around evaluations, collectives and combines.

    With ``graph`` forward passes are replayed from the graphs of :func:`prepare_point`. With ``steps`` the loop ends
    after so many. With ``again`` the request is prepared anew, as it is for a loop that is verified. The reference
    runs on rank 0 alone; the others return None.
    """
    stage = Stage.of(rank, plan, again)
    if not stage.takes_part:
        return None
    whole = stage.request.schedule
    schedule = whole if steps is None else Schedule(whole.timesteps[:steps], whole.dts[:steps], whole.guided[:steps])
    denoiser: Denoiser = rank.memo["graphed"] if graph else stage.prepared.denoiser
    group, observe = stage.group, unseen
    watch = Stopwatch(rank.device)
    with stage.arithmetic():
        # No rank's clock starts while another is still on its way here.
        group.all_gather(torch.zeros(1, device=rank.device))
        if split:
            timed = Timed(watch)
            denoiser, group, observe = HeardDenoiser(denoiser, timed), HeardGroup(group, timed), timed.observe
        synchronise(rank.device)
        began = time.perf_counter()
        stage.play(denoiser, group, observe, schedule)
        synchronise(rank.device)
        total = time.perf_counter() - began
    return Timing(total, watch.seconds())


def unseen(step: int, x_t: torch.Tensor, state: State = None) -> None:
    """What a bare loop calls after each step: nothing looks."""


def forward_against_ceiling(rank: Rank, plan: Plan, rounds: int, graph: bool = False) -> dict[str, Any] | None:
    """On rank 0, the others idle: a forward pass of gen beside a large product, in turn, so that both meet one clock.

    Returns:
        ``forward_s``, ``flops``, ``matmul_flops_per_s`` (medians over the rounds) and ``ratio``: the forward pass's
        time over that of its floating-point operations at the product's rate; with ``graph`` also ``replay_s``, the
        same forward pass replayed. None on the other ranks.
    """
    if rank.rank:
        return None
    prepared = Stage.of(rank, plan, again=False).prepared
    denoiser, x_0 = prepared.denoiser, prepared.x_0
    assert isinstance(denoiser, BagelDenoiser)
    assert isinstance(x_0, torch.Tensor)
    flops = forward_flops(denoiser.model.config, plan.request.tokens, denoiser.contexts["gen"].keys.shape[2])
    forwards, replays, rates = [], [], []

    def seconds(network: Denoiser) -> float:
        return median_seconds(lambda: network.velocity(x_0, 0, "gen"), rank.device, runs=5)

    with torch.no_grad():
        for _ in range(rounds):
            forwards.append(seconds(denoiser))
            if graph:
                replays.append(seconds(rank.memo["graphed"]))
            rates.append(matmul_rate(rank.device, plan.options.torch_dtype))
    forward, rate = statistics.median(forwards), statistics.median(rates)
    return {
        "tokens": plan.request.tokens,
        "forward_s": forward,
        "flops": flops,
        "matmul_flops_per_s": rate,
        "ratio": forward * rate / flops,
        "forwards_s": forwards,
        "matmul_rates": rates,
    } | ({"replay_s": statistics.median(replays), "replays_s": replays} if graph else {})
