"""What the hardware allows: the floating-point operations of a forward pass, and the rate of a large product."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

from verify.bagel.config import BagelConfig
from verify.bench.stopwatch import FORWARD, Stopwatch


def forward_flops(config: BagelConfig, tokens: int, cached_rows: int) -> int:
    """Floating-point operations of one velocity: a multiply and an add for each weight a token meets, and attention.

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


def matmul_rate(device: torch.device, dtype: torch.dtype, runs: int = 20) -> float:
    """Operations a second of a square product of random matrices, the median of ``runs`` after three warm-ups."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / median_seconds(lambda: a @ b, device, runs)


def median_seconds(work: Callable[[], object], device: torch.device, runs: int, warm_up: int = 3) -> float:
    """Median duration of ``work``: by CUDA events on a GPU, by the clock on a CPU."""
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
