"""Wan 2.2 on diffusers: two tiny random experts, 5-D video latents, UniPC (which remembers earlier steps), two scales.

The first half is what a serving engine does; the second makes a target of it.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UniPCMultistepScheduler, WanTransformer3DModel
from torch import Tensor, nn

from verify.schedule import Schedule
from verify.targets.protocol import ModelOptions, Prepared

BOUNDARY = 0.875
HISTORY = ("model_outputs", "timestep_list", "lower_order_nums", "last_sample", "this_order", "_step_index")


def make_scheduler(request: Any) -> Any:
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=request.timestep_shift, solver_order=2
    )
    scheduler.set_timesteps(request.num_timesteps)
    return scheduler


class Pipeline:
    """The engine. ``experts`` are called (latents, t, prompt)."""

    def __init__(self, experts: Any, scheduler: Any, group: Any) -> None:
        self.experts, self.scheduler, self.group = experts, scheduler, group

    def __call__(
        self, latents: Tensor, prompts: Any, scales: tuple[float, float], callback: Any, first: int = 0
    ) -> Tensor:
        if self.group is not None:
            self.group.broadcast(latents)
        for i, t in enumerate(self.scheduler.timesteps[first:], first):
            low = self.is_low(t)
            if self.group is not None:
                cond, uncond = self.group.all_gather(self.experts[low](latents, t, prompts[self.group.rank]))
            else:
                cond, uncond = (self.experts[low](latents, t, prompt) for prompt in prompts)
            noise = uncond + scales[low] * (cond - uncond)
            latents = self.scheduler.step(noise, t, latents, return_dict=False)[0]
            callback(i, latents)
        return latents

    def is_low(self, t: Tensor) -> bool:
        return bool(t < BOUNDARY * 1000)


def make_expert(device: torch.device, dtype: torch.dtype) -> Any:
    expert = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=16, out_channels=16,
        text_dim=32, freq_dim=256, ffn_dim=32, num_layers=2, cross_attn_norm=True,
        qk_norm="rms_norm_across_heads", rope_max_seq_len=32,
    )  # fmt: skip
    return expert.to(device, dtype).eval()


class Denoiser:
    def __init__(self, request: Any, options: ModelOptions, device: torch.device) -> None:
        torch.manual_seed(0)
        self.model = nn.ModuleDict({name: make_expert(device, options.torch_dtype) for name in ("high", "low")})
        g = torch.Generator().manual_seed(request.seed)
        self.prompts = {
            b: torch.randn(1, 7, 32, generator=g).to(device, options.torch_dtype) for b in ("cond", "uncond")
        }
        self.scheduler = make_scheduler(request)
        self.timesteps = self.scheduler.timesteps.to(device)

    def velocity(
        self, x_t: Tensor, step: int, branch: str, t: Tensor | None = None, expert: str | None = None
    ) -> Tensor:
        at, prompt = self.timesteps[step] if t is None else t, self.prompts[branch]
        network = self.model[expert or ("high" if at >= BOUNDARY * 1000 else "low")]
        return network(x_t.to(prompt.dtype), at.expand(len(x_t)), prompt, return_dict=False)[0]


class WanTarget:
    name = "diffusers Wan 2.2"
    expects = {"parallel": "local"}  # noqa: RUF012
    ignores = ("cfg_interval", "cfg_img_scale", "cfg_renorm_type", "cfg_renorm_min")
    pipeline = Pipeline

    def __init__(self) -> None:
        self.loops = {"reference": self.loop, "parallel": self.loop}

    def branches(self, request: Any) -> tuple[str, ...]:
        return "cond", "uncond"

    def schedule(self, request: Any) -> Schedule:
        s = make_scheduler(request)
        times = tuple(map(float, s.timesteps))
        experts = tuple("high" if t >= BOUNDARY * 1000 else "low" for t in times)
        return Schedule(times, s.sigmas[:-1] - s.sigmas[1:], (True,) * len(times), experts=experts)

    def prepare(self, request: Any, options: ModelOptions, rank: int, device: torch.device) -> Prepared:
        denoiser = Denoiser(request, options, device)
        noise = torch.Generator().manual_seed(1000 * request.seed + rank)
        x_0 = torch.randn(1, 16, 3, request.height // 8, request.width // 8, generator=noise).to(device)
        caches = {branch: {"embeds": prompt} for branch, prompt in denoiser.prompts.items()}
        return Prepared(
            denoiser, x_0, caches, state=lambda: {name: getattr(denoiser.scheduler, name, None) for name in HISTORY}
        )

    def made(self, denoiser: Any, group: Any) -> Pipeline:
        experts = [
            lambda latents, t, branch, name=name: denoiser.velocity(latents, None, branch, t=t, expert=name)
            for name in ("high", "low")
        ]
        return self.pipeline(experts, denoiser.scheduler, group if group is not None and group.world_size > 1 else None)

    def loop(self, denoiser: Any, request: Any, x_0: Tensor, group: Any, observe: Any) -> Tensor:
        scales = request.cfg_text_scale, request.cfg_text_scale - 0.5
        return self.made(denoiser, group)(x_0, ("cond", "uncond"), scales, observe)

    def resume(self, denoiser: Any, request: Any, x_t: Tensor, step: int, state: Any, observe: Any) -> Tensor:
        """The reference from ``step`` on, with the scheduler as it was before it."""
        denoiser.scheduler = make_scheduler(request)
        vars(denoiser.scheduler).update(state)
        scales = request.cfg_text_scale, request.cfg_text_scale - 0.5
        return self.made(denoiser, None)(x_t, ("cond", "uncond"), scales, observe, first=step)


class StaleState(Pipeline):
    """A bug of engines: rank 1's scheduler is the one of an earlier request, and keeps its history."""

    def __call__(self, latents: Tensor, *arguments: Any, **others: Any) -> Tensor:
        if self.group is not None and self.group.rank == 1:
            s = self.scheduler
            s.lower_order_nums, s.model_outputs = 1, [None, torch.zeros_like(latents)]
            s.timestep_list, s.last_sample = [s.timesteps[0], s.timesteps[0]], torch.zeros_like(latents)
        return super().__call__(latents, *arguments, **others)


class StaleTarget(WanTarget):
    name = "diffusers Wan 2.2, stale scheduler on rank 1"
    pipeline = StaleState


class LateSwitch(Pipeline):
    """A bug: rank 1 compares with another boundary, and asks the high-noise expert for longer."""

    def is_low(self, t: Tensor) -> bool:
        return bool(t < (0.7 if self.group is not None and self.group.rank == 1 else BOUNDARY) * 1000)


class LateTarget(WanTarget):
    name = "diffusers Wan 2.2, experts switched late on rank 1"
    pipeline = LateSwitch
