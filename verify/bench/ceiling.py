"""What the hardware allows: the operations of a forward pass, and the rate at which a large product does them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch

from verify.bagel.config import BagelConfig
from verify.bench.stopwatch import FORWARD, Stopwatch
from verify.expected import expected_work
from verify.schedule import Schedule


def forward_flops(config: BagelConfig, tokens: int, cached_rows: int) -> int:
    """Floating-point operations of one velocity: a multiply and an add per token and weight, and attention.

    Args:
        config: the model's geometry.
        tokens: latent tokens; two markers are added.
        cached_rows: rows of the branch's KV cache.
    """
    rows = tokens + 2
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    weights = config.hidden * (2 * queries + 2 * keys + 3 * config.mlp)
    attention = 2 * rows * (rows + cached_rows) * queries
    outside = 2 * tokens * config.hidden * config.latent_channels
    return 2 * (config.layers * (rows * weights + attention) + outside)


def forwards_in_turn(kind: str, schedule: Schedule, branches: Sequence[str], devices: Sequence[str]) -> int:
    """How many forward passes of a whole loop have to run one after another.

    A step lasts as long as its busiest device. Ranks with a device of their own run side by side. Ranks that share a
    GPU run one after another, because each pass fills it.

    Args:
        kind: a loop version.
        schedule: the schedule of the request.
        branches: the branches of the request, in rank order.
        devices: one per rank; CPU ranks have cores of their own.
    """
    places = [f"{device} {rank}" if device == "cpu" else device for rank, device in enumerate(devices)]
    ranks = expected_work(kind, schedule, branches, len(devices)).branches
    if kind == "reference":  # It runs on rank 0 alone.
        places, ranks = places[:1], ranks[:1]
    return sum(
        max(sum(len(steps[step]) for place, steps in zip(places, ranks, strict=True) if place == busiest)
            for busiest in set(places))
        for step in range(schedule.steps)
    )  # fmt: skip


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a square product of random matrices: the median of several, after a warm-up."""
    # A CPU without half-precision units takes a fifth of a second for this one, a GPU two thousandths.
    size, runs = (8192, 40) if device.type == "cuda" else (512, 2)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / median_seconds(lambda: a @ b, device, runs)


def median_seconds(work: Callable[[], object], device: torch.device, runs: int, warm_up: int = 1) -> float:
    """The median duration of ``work``, by CUDA events on a GPU and by the clock on a CPU."""
    for _ in range(warm_up):
        work()
    watch = Stopwatch(device)
    for _ in range(runs):
        began = watch.now()
        work()
        watch.add(FORWARD, began)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return statistics.median(watch.seconds()[FORWARD])
