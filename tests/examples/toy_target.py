"""All that makes the imagined engine a target: ``verify run --target tests/examples/toy_target.py:ToyTarget``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from toy_engine import CHANNELS, WIDTH, WORDS, BrokenPipeline, EulerScheduler, Pipeline, Transformer

from verify.errors import BadInput
from verify.schedule import Schedule
from verify.targets.protocol import ModelOptions, Prepared


class Denoiser:
    """The engine's network and embedded prompts on this rank, as the suite asks for them: by step and branch."""

    def __init__(self, request: Any, options: ModelOptions, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(request.seed)
        self.embeds = {b: torch.randn(WORDS, WIDTH, generator=generator).to(device) for b in ("cond", "uncond")}
        self.network = Transformer(seed=1).to(device)
        self.scheduler = EulerScheduler()
        self.scheduler.set_timesteps(request.num_timesteps, device)

    def velocity(self, x_t: Tensor, step: int, branch: str) -> Tensor:
        velocity: Tensor = self.network(x_t, self.scheduler.timesteps[step], self.embeds[branch])
        return velocity


class ToyTarget:
    """Of a request it reads ``seed``, ``height``, ``width``, ``num_timesteps`` and ``cfg_text_scale``."""

    name = "toy"
    expects: Mapping[str, str] = {"parallel": "local"}
    ignores = ("timestep_shift", "cfg_interval", "cfg_img_scale", "cfg_renorm_type", "cfg_renorm_min", "dtype")
    pipeline = Pipeline

    def __init__(self) -> None:
        self.loops = {"reference": self.loop, "parallel": self.loop}

    def branches(self, request: Any) -> tuple[str, ...]:
        if request.cfg_img_scale > 1:
            raise BadInput.of("cfg_img_scale", request.cfg_img_scale, "1.0: two branches only", "leave it out")
        return "cond", "uncond"

    def schedule(self, request: Any) -> Schedule:
        scheduler = EulerScheduler()
        scheduler.set_timesteps(request.num_timesteps, torch.device("cpu"))
        times = tuple(scheduler.timesteps.tolist())
        return Schedule(times, scheduler.sigmas[:-1] - scheduler.sigmas[1:], guided=(True,) * len(times))

    def prepare(self, request: Any, options: ModelOptions, rank: int, device: torch.device) -> Prepared:
        generator = torch.Generator().manual_seed(1000 * request.seed + rank)  # Other noise on every rank.
        denoiser = Denoiser(request, options, device)
        x_0 = torch.randn(request.tokens, CHANNELS, generator=generator).to(device)
        return Prepared(denoiser, x_0, {branch: {"embeds": t} for branch, t in denoiser.embeds.items()})

    def loop(self, denoiser: Any, request: Any, x_0: Tensor, group: Any, observe: Any) -> Tensor:
        """The engine's own loop. Its calls to network, group and callback go through what the suite hands over."""
        branch_of = {id(embeds): branch for branch, embeds in denoiser.embeds.items()}
        step_of = {t: step for step, t in enumerate(request.schedule.timesteps)}

        def network(sample: Tensor, t: Tensor, embeds: Tensor) -> Tensor:
            velocity: Tensor = denoiser.velocity(sample, step_of[t.item()], branch_of[id(embeds)])
            return velocity

        pipeline = self.pipeline(network, group if group.world_size > 1 else None)
        embeds = denoiser.embeds["cond"], denoiser.embeds["uncond"]
        return pipeline(x_0, *embeds, request.num_timesteps, request.cfg_text_scale, observe)


class BrokenTarget(ToyTarget):
    """The same engine with a scheduler that draws noise on each rank for itself."""

    name = "toy, broken"
    pipeline = BrokenPipeline
