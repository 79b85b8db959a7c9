"""What the gate judges. It runs as it is, on a toy engine: replace what is below each line that says REPLACE.

pytest                                                                            your own tests, this gate among them
pytest --pyargs verify.gate --verify-target verify_target.py:MyTarget             every claim, one test each
verify run --target verify_target.py:MyTarget --html page.html                    the same on a page
PLANTED_BUG=1 pytest                                                              what a failure looks like
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from verify import BadInput, DenoiseRequest, ModelOptions, Prepared, Schedule

CHANNELS, WIDTH, WORDS = 12, 32, 5


class Network(nn.Module):
    """REPLACE: your transformer. ``latents`` (tokens, 12), the time from 1 to 0, a prompt's embedding (5, 32)."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.time, self.out = nn.Linear(CHANNELS, WIDTH), nn.Linear(1, WIDTH), nn.Linear(WIDTH, CHANNELS)
        generator = torch.Generator().manual_seed(1)  # Equal weights on every rank.
        for parameter in self.parameters():
            parameter.requires_grad_(False).copy_(torch.randn(parameter.shape, generator=generator) / 4)

    def forward(self, latents: Tensor, time: Tensor, prompt: Tensor) -> Tensor:
        x = self.into(latents) + self.time(time.reshape(1, 1))
        x = x + torch.softmax(x @ prompt.T, -1) @ prompt
        velocity: Tensor = self.out(nn.functional.silu(x))
        return velocity


class Denoiser:
    """Gives the network's velocity by step and branch."""

    def __init__(self, request: DenoiseRequest, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(request.seed)
        self.prompts = {b: torch.randn(WORDS, WIDTH, generator=generator).to(device) for b in ("cond", "uncond")}
        self.network = Network().to(device)
        self.times = torch.linspace(1, 0, request.num_timesteps + 1, device=device)

    def velocity(self, x_t: Tensor, step: int, branch: str) -> Tensor:
        velocity: Tensor = self.network(x_t, self.times[step], self.prompts[branch])
        return velocity


def combined(request: Any, cond: Tensor, uncond: Tensor, rank: int, step: int) -> Tensor:
    """REPLACE: your guidance."""
    scale = request.cfg_text_scale
    if os.environ.get("PLANTED_BUG") and rank == 1 and step >= 3:  # DELETE: rank 1 forgets its scale at step 3.
        scale = 1.0
    return uncond + scale * (cond - uncond)


def one_process(denoiser: Any, request: Any, x_0: Tensor, group: Any, observe: Any) -> Tensor:
    """REPLACE: your loop in one process, branch after branch. The others are held to its bytes."""
    x_t = x_0
    for step, dt in enumerate(request.schedule.dts):
        cond, uncond = (denoiser.velocity(x_t, step, branch) for branch in request.branches)
        x_t = x_t - combined(request, cond, uncond, 0, step) * dt
        observe(step, x_t)
    return x_t


def parallel(denoiser: Any, request: Any, x_0: Tensor, group: Any, observe: Any) -> Tensor:
    """REPLACE: your CFG-parallel loop. ``group`` stands for your process group, ``observe`` for your step callback."""
    x_t = group.broadcast(x_0)
    for step, dt in enumerate(request.schedule.dts):
        own = denoiser.velocity(x_t, step, request.branches[group.rank])
        cond, uncond = group.all_gather(own)
        x_t = x_t - combined(request, cond, uncond, group.rank, step) * dt
        observe(step, x_t)
    return x_t


class MyTarget:
    """Whose loops are judged, and what they run with. `verify help target` explains each part."""

    name = "my engine"
    loops = {"reference": one_process, "parallel": parallel}
    # The exchanges and evaluations that a loop is held to: broadcast, local, round_robin, reduce or any.
    expects = {"parallel": "local"}

    # Fields of a request that this engine does not read; the gate judges requests that differ in the others.
    ignores = ("timestep_shift", "cfg_interval", "cfg_img_scale", "cfg_renorm_type", "cfg_renorm_min", "dtype")

    def branches(self, request: DenoiseRequest) -> tuple[str, ...]:
        """Names in rank order."""
        if request.cfg_img_scale > 1:
            raise BadInput.of("cfg_img_scale", request.cfg_img_scale, "1.0: two branches only", "leave it out")
        return "cond", "uncond"

    def schedule(self, request: DenoiseRequest) -> Schedule:
        """Timesteps, step sizes, and which steps are guided."""
        times = torch.linspace(1, 0, request.num_timesteps + 1)
        return Schedule(tuple(times[:-1].tolist()), times[:-1] - times[1:], guided=(True,) * request.num_timesteps)

    def prepare(self, request: DenoiseRequest, options: ModelOptions, rank: int, device: torch.device) -> Prepared:
        """All that a loop needs on this rank: the same weights everywhere, other noise on every rank."""
        denoiser = Denoiser(request, device)
        generator = torch.Generator().manual_seed(1000 * request.seed + rank)
        x_0 = torch.randn(request.tokens, CHANNELS, generator=generator).to(device)
        return Prepared(denoiser, x_0, {branch: {"prompt": t} for branch, t in denoiser.prompts.items()})
