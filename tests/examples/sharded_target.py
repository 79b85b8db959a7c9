"""The target of ``sharded_engine.py``: each rank keeps its shard of the latents all along."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from sharded_engine import CHANNELS, TOKENS, WIDTH, ParallelState, Pipeline, Transformer
from torch import Tensor

from verify.expected import BRANCHES, EVERYBODY, SHARDS, VELOCITY, X_T, Call, Exchanges
from verify.layout import Layout
from verify.request import DenoiseRequest
from verify.schedule import Schedule
from verify.targets.protocol import ModelOptions, Prepared


class Denoiser:
    """The engine's network, asked by the names that the suite has; ``state`` is None for a process alone."""

    def __init__(self, transformer: Transformer, prompts: dict[str, Tensor], times: Any, state: Any = None) -> None:
        self.transformer, self.prompts, self.times, self.state = transformer, prompts, times, state

    def velocity(self, x_t: Tensor, step: int, branch: str) -> Tensor:
        velocity: Tensor = self.transformer(x_t, self.times[step], self.prompts[branch], self.state)
        return velocity


class ShardedTarget:
    name, ranks, pipeline = "sharded engine", 4, Pipeline
    expects = {  # noqa: RUF012
        "parallel": Exchanges(
            start=(Call("broadcast", X_T, EVERYBODY, src=0),),
            guided=(Call("all_gather", VELOCITY, BRANCHES),),
            end=(Call("all_gather", X_T, SHARDS),),
            direct=True,
        )
    }

    def __init__(self) -> None:
        self.loops = {"reference": self.loop, "parallel": self.loop}
        self._state: ParallelState | None = None

    def layout(self, world_size: int) -> Layout:
        return Layout(branch_groups=2, shards=world_size // 2, cut=0)

    def branches(self, request: DenoiseRequest) -> tuple[str, str]:
        return "cond", "uncond"

    def schedule(self, request: DenoiseRequest) -> Schedule:
        sigmas = torch.linspace(1, 0, request.num_timesteps + 1)
        return Schedule(tuple(sigmas[:-1].tolist()), sigmas[:-1] - sigmas[1:], (True,) * request.num_timesteps)

    def prepare(self, request: DenoiseRequest, options: ModelOptions, rank: int, device: torch.device) -> Prepared:
        self._state = self._state or ParallelState(dist.get_world_size() // 2)
        texts = torch.randn(2, 3 * WIDTH, generator=torch.Generator().manual_seed(request.seed)).to(device)
        prompts = {"cond": texts[0], "uncond": texts[1]}
        transformer, times = Transformer(seed=0).to(device), self.schedule(request).timesteps
        noise = torch.randn(TOKENS, CHANNELS, generator=torch.Generator().manual_seed(1000 * request.seed + rank))
        return Prepared(
            Denoiser(transformer, prompts, times, self._state),
            noise.to(device),
            {branch: {"prompt": prompt} for branch, prompt in prompts.items()},
            alone=Denoiser(transformer, prompts, times),
        )

    def loop(self, denoiser: Any, request: DenoiseRequest, x_0: Tensor, group: Any, observe: Any) -> Tensor:
        branch_of = {id(prompt): branch for branch, prompt in denoiser.prompts.items()}
        step_of = {t: step for step, t in enumerate(request.schedule.timesteps)}

        def network(sample: Tensor, t: float, prompt: Tensor, state: Any = None) -> Tensor:
            velocity: Tensor = denoiser.velocity(sample, step_of[t], branch_of[id(prompt)])
            return velocity

        pipeline = self.pipeline(network, self._state if group.world_size > 1 else None)
        sigmas = torch.linspace(1, 0, request.num_timesteps + 1, device=x_0.device)
        return pipeline(x_0, tuple(denoiser.prompts.values()), sigmas, request.cfg_text_scale, observe)


class _OneRankSwaps(Pipeline):
    """Rank 3 takes one branch's prediction for the other's."""

    def branches(self, own: Tensor) -> tuple[Tensor, Tensor]:
        cond, uncond = super().branches(own)
        return (uncond, cond) if dist.get_rank() == 3 else (cond, uncond)


class _ShareAgain(Pipeline):
    """The latents of the first branch are sent to the other after each step."""

    def __call__(self, latents: Tensor, prompts: Any, sigmas: Any, scale: float, callback: Any) -> Tensor:
        def shared(i: int, x_t: Tensor) -> None:
            if self.state is not None:
                dist.broadcast(x_t, self.state.sp_rank, group=self.state.cfg_group)
            callback(i, x_t)

        return super().__call__(latents, prompts, sigmas, scale, shared)


class BranchesSwapped(ShardedTarget):
    name, pipeline = "sharded engine, broken", _OneRankSwaps


class SharedAgain(ShardedTarget):
    name, pipeline = "sharded engine with a broadcast", _ShareAgain
