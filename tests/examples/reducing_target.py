"""The target of ``reducing_engine.py``: nothing is gathered, and nothing is shared at the start."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.distributed as dist
from reducing_engine import CHANNELS, TOKENS, WIDTH, Network, Pipeline, weights
from torch import Tensor

from verify.expected import Exchanges
from verify.request import DenoiseRequest
from verify.schedule import Schedule
from verify.targets.protocol import ModelOptions, Prepared


class Denoiser:
    """The engine's network, asked by the names that the suite has."""

    def __init__(self, network: Network, prompts: dict[str, Tensor], times: tuple[float, ...]) -> None:
        self.network, self.prompts, self.times = network, prompts, times

    def velocity(self, x_t: Tensor, step: int, branch: str) -> Tensor:
        velocity: Tensor = self.network(x_t, self.times[step], self.prompts[branch])
        return velocity


class ReducingTarget:
    name, pipeline = "reducing engine", Pipeline
    expects: ClassVar = {"parallel": Exchanges.of("reduce", direct=True)}

    def __init__(self) -> None:
        self.loops = {"reference": self.loop, "parallel": self.loop}

    def branches(self, request: DenoiseRequest) -> tuple[str, str]:
        return "cond", "uncond"

    def schedule(self, request: DenoiseRequest) -> Schedule:
        sigmas = torch.linspace(1, 0, request.num_timesteps + 1)
        return Schedule(tuple(sigmas[:-1].tolist()), sigmas[:-1] - sigmas[1:], (True,) * request.num_timesteps)

    def seed(self, request: DenoiseRequest, rank: int) -> int:
        return request.seed

    def prepare(self, request: DenoiseRequest, options: ModelOptions, rank: int, device: torch.device) -> Prepared:
        texts = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(request.seed + 1)).to(device)
        prompts = {"cond": texts[0], "uncond": texts[1]}
        noise = torch.randn(TOKENS, CHANNELS, generator=torch.Generator().manual_seed(self.seed(request, rank)))
        return Prepared(
            Denoiser(Network(seed=0).to(device), prompts, self.schedule(request).timesteps),
            noise.to(device),
            {branch: {"prompt": prompt} for branch, prompt in prompts.items()},
            equal_noise=True,
            sends=lambda velocity: weights(request.cfg_text_scale)[rank] * velocity,
        )

    def loop(self, denoiser: Any, request: DenoiseRequest, x_0: Tensor, group: Any, observe: Any) -> Tensor:
        branch_of = {id(prompt): branch for branch, prompt in denoiser.prompts.items()}
        step_of = {t: step for step, t in enumerate(request.schedule.timesteps)}

        def network(sample: Tensor, t: float, prompt: Tensor) -> Tensor:
            velocity: Tensor = denoiser.velocity(sample, step_of[t], branch_of[id(prompt)])
            return velocity

        pipeline = self.pipeline(network, parallel=group.world_size > 1)
        sigmas = torch.linspace(1, 0, request.num_timesteps + 1, device=x_0.device)
        return pipeline(x_0, tuple(denoiser.prompts.values()), sigmas, request.cfg_text_scale, observe)


class _OneWeightOff(Pipeline):
    """Rank 1 weighs its branch otherwise in step 3."""

    def weighted(self, i: int, scale: float) -> tuple[float, float]:
        cond, uncond = super().weighted(i, scale)
        return (cond, 0.5 * uncond) if self.parallel and i == 3 and dist.get_rank() == 1 else (cond, uncond)


class WeightOff(ReducingTarget):
    name, pipeline = "reducing engine, broken", _OneWeightOff


class SeedsDiffer(ReducingTarget):
    name = "reducing engine with a seed a rank"

    def seed(self, request: DenoiseRequest, rank: int) -> int:
        return request.seed + rank
