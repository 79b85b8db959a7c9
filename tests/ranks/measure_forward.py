"""Times forward passes of ``7b`` on a GPU: plain formulas and fused ones, eager and replayed, beside a large product.

``python tests/ranks/measure_forward.py [SIDE ...]`` prints a JSON object a line: milliseconds (medians of several
rounds in turn), each over its operations at the rate of a large product, and whether all ways have the same bits.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from verify.bagel import fused
from verify.bagel.config import PRESETS
from verify.bagel.denoiser import BagelDenoiser, initial_noise
from verify.bagel.graphs import GraphedDenoiser, Recording
from verify.bagel.weights import build_model
from verify.bench.ceiling import forward_flops, matmul_rate, median_seconds
from verify.bits import same_bits
from verify.request import DenoiseRequest

CUDA = torch.device("cuda")
ROUNDS, RUNS = 5, 5


def plain() -> Any:
    """Plain formulas only."""
    return mock.patch.object(fused, "serves", return_value=False)


@torch.no_grad()
def measure(side: int) -> dict[str, object]:
    """One size."""
    model = build_model(PRESETS["7b"].config, torch.bfloat16, CUDA, seed=1)
    request = DenoiseRequest(height=side, width=side)
    denoiser = BagelDenoiser(model, request)
    x_t = initial_noise(request, model.config.latent_channels).to(CUDA)
    replay = GraphedDenoiser(denoiser, Recording(denoiser, x_t))
    with plain():
        plain_replay = GraphedDenoiser(denoiser, Recording(denoiser, x_t))

    def by_plain() -> Tensor:
        with plain():
            return denoiser.velocity(x_t, 0, "gen")

    ways: dict[str, Callable[[], Tensor]] = {
        "plain": by_plain,
        "fused": lambda: denoiser.velocity(x_t, 0, "gen"),
        "plain, replayed": lambda: plain_replay.velocity(x_t, 0, "gen"),
        "fused, replayed": lambda: replay.velocity(x_t, 0, "gen"),
    }
    velocities = [way().clone() for way in ways.values()]
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    rates = []
    for _ in range(ROUNDS):
        for name, way in ways.items():
            seconds[name].append(median_seconds(way, CUDA, RUNS))
        rates.append(matmul_rate(CUDA, torch.bfloat16))
    floor = forward_flops(model.config, request.tokens, denoiser.contexts["gen"].keys.shape[2]) / statistics.median(
        rates
    )
    found = {name: statistics.median(of) for name, of in seconds.items()}
    return {
        "side": side,
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "kernels": fused.told(CUDA, torch.bfloat16),
        "milliseconds": {name: round(1e3 * of, 2) for name, of in found.items()},
        "over_operations": {name: round(of / floor, 3) for name, of in found.items()},
        "matmul_tflops": round(statistics.median(rates) / 1e12, 1),
        "same_bits": all(same_bits(velocities[0], velocity) for velocity in velocities),
    }


if __name__ == "__main__":
    for asked in map(int, sys.argv[1:] or ("256", "512", "1024")):
        print(json.dumps(measure(asked)), flush=True)
        torch.cuda.empty_cache()
