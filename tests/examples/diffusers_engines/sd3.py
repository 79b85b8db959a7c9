"""Stable Diffusion 3 on diffusers: its transformer (tiny, random) and FlowMatchEulerDiscreteScheduler, over two ranks.

The first half is what a serving engine does; the second makes a target of it.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from torch import Tensor

from verify.schedule import Schedule
from verify.targets.protocol import ModelOptions, Prepared

CHANNELS = 4


def engine_loop(
    transformer: Any, scheduler: Any, latents: Tensor, prompts: Any, scale: float, group: Any, callback: Any
) -> Tensor:
    """A rank evaluates its own prompt, all gather, and each combines and steps for itself."""
    if group is not None:
        group.broadcast(latents)
    for i, t in enumerate(scheduler.timesteps):
        if group is not None:
            cond, uncond = group.all_gather(transformer(latents, t, prompts[group.rank]))
        else:
            cond, uncond = (transformer(latents, t, prompt) for prompt in prompts)
        latents = scheduler.step(uncond + scale * (cond - uncond), t, latents, return_dict=False)[0]
        callback(i, latents)
    return latents


def make_scheduler(request: Any) -> Any:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=request.timestep_shift)
    scheduler.set_timesteps(request.num_timesteps)
    return scheduler


def make_network(device: torch.device, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    network = SD3Transformer2DModel(
        sample_size=32, patch_size=1, in_channels=CHANNELS, out_channels=CHANNELS, num_layers=2, attention_head_dim=8,
        num_attention_heads=4, caption_projection_dim=32, joint_attention_dim=32, pooled_projection_dim=64,
    )  # fmt: skip
    return network.to(device, dtype).eval()


class Denoiser:
    def __init__(self, request: Any, options: ModelOptions, device: torch.device) -> None:
        self.model = make_network(device, options.torch_dtype)
        g = torch.Generator().manual_seed(request.seed)
        self.prompts = {
            branch: {
                "embeds": torch.randn(1, 7, 32, generator=g).to(device, options.torch_dtype),
                "pooled": torch.randn(1, 64, generator=g).to(device, options.torch_dtype),
            }
            for branch in ("cond", "uncond")
        }
        self.timesteps = make_scheduler(request).timesteps.to(device)

    def velocity(self, x_t: Tensor, step: int, branch: str, t: Tensor | None = None) -> Tensor:
        prompt, at = self.prompts[branch], self.timesteps[step] if t is None else t
        return self.model(
            hidden_states=x_t, timestep=at.expand(len(x_t)), encoder_hidden_states=prompt["embeds"],
            pooled_projections=prompt["pooled"], return_dict=False,
        )[0]  # fmt: skip


class SD3Target:
    name = "diffusers SD3"
    expects = {"parallel": "local"}  # noqa: RUF012
    ignores = ("cfg_interval", "cfg_img_scale", "cfg_renorm_type", "cfg_renorm_min")

    def __init__(self) -> None:
        self.loops = {"reference": self.loop, "parallel": self.loop}

    def branches(self, request: Any) -> tuple[str, ...]:
        return "cond", "uncond"

    def schedule(self, request: Any) -> Schedule:
        s = make_scheduler(request)
        return Schedule(tuple(s.timesteps.tolist()), s.sigmas[:-1] - s.sigmas[1:], (True,) * len(s.timesteps))

    def prepare(self, request: Any, options: ModelOptions, rank: int, device: torch.device) -> Prepared:
        denoiser = Denoiser(request, options, device)
        noise = torch.Generator().manual_seed(1000 * request.seed + rank)
        x_0 = torch.randn(1, CHANNELS, request.height // 8, request.width // 8, generator=noise)
        return Prepared(denoiser, x_0.to(device, options.torch_dtype), denoiser.prompts)

    def asks(self, denoiser: Any, group: Any) -> Any:
        """The network as the engine calls it."""
        return lambda latents, t, branch: denoiser.velocity(latents, None, branch, t=t)

    def loop(self, denoiser: Any, request: Any, x_0: Tensor, group: Any, observe: Any) -> Tensor:
        cfg_group = group if group.world_size > 1 else None
        network, scheduler = self.asks(denoiser, group), make_scheduler(request)
        prompts = ("cond", "uncond")
        return engine_loop(network, scheduler, x_0, prompts, request.cfg_text_scale, cfg_group, observe)


class OtherKernel(SD3Target):
    """A bug: in step 3 rank 1's network answers 1 % too much."""

    name = "diffusers SD3, another kernel on rank 1"

    def asks(self, denoiser: Any, group: Any) -> Any:
        calls: list[Any] = []

        def network(latents: Tensor, t: Tensor, branch: str) -> Tensor:
            calls.append(t)
            velocity = denoiser.velocity(latents, None, branch, t=t)
            return velocity * 1.01 if group.rank == 1 and len(calls) == 4 else velocity

        return network


class WrongTimestep(SD3Target):
    """A bug: rank 1 asks for the timestep of the step before, from step 2 on."""

    name = "diffusers SD3, another timestep on rank 1"

    def asks(self, denoiser: Any, group: Any) -> Any:
        seen: list[Tensor] = []

        def network(latents: Tensor, t: Tensor, branch: str) -> Tensor:
            seen.append(t)
            late = group.rank == 1 and len(seen) > 2
            return denoiser.velocity(latents, None, branch, t=seen[-2] if late else t)

        return network


class OtherWeight(SD3Target):
    """A bug: one weight of the second block was loaded differently on rank 1."""

    name = "diffusers SD3, another weight on rank 1"

    def prepare(self, request: Any, options: ModelOptions, rank: int, device: torch.device) -> Prepared:
        prepared = super().prepare(request, options, rank, device)
        if rank == 1:
            denoiser: Any = prepared.denoiser
            denoiser.model.transformer_blocks[1].attn.to_q.weight.data[0, 0] += 0.5
        return prepared
