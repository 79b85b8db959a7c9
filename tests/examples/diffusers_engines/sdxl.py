"""SDXL's kind on diffusers: a tiny random UNet, a batch of two, EulerAncestral and guidance rescale.

EulerAncestral scales the network's input, and draws noise in each step.

The first half is what a serving engine does; the second makes a target of it.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import EulerAncestralDiscreteScheduler, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from torch import Tensor

from verify.schedule import Schedule
from verify.targets.protocol import ModelOptions, Prepared

BATCH = 2


def make_scheduler(request: Any) -> Any:
    scheduler = EulerAncestralDiscreteScheduler(beta_schedule="scaled_linear")
    scheduler.set_timesteps(request.num_timesteps)
    return scheduler


def engine_loop(
    unet: Any, scheduler: Any, latents: Tensor, prompts: Any, scale: float, group: Any, generator: Any, callback: Any,
    first: int = 0,
) -> Tensor:  # fmt: skip
    if group is not None:
        group.broadcast(latents)
    for i, t in enumerate(scheduler.timesteps[first:], first):
        scaled = scheduler.scale_model_input(latents, t)
        if group is not None:
            uncond, cond = group.all_gather(unet(scaled, t, prompts[group.rank]))
        else:
            uncond, cond = (unet(scaled, t, prompt) for prompt in prompts)
        noise = rescale_noise_cfg(uncond + scale * (cond - uncond), cond, guidance_rescale=0.7)
        latents = scheduler.step(noise, t, latents, generator=generator, return_dict=False)[0]
        callback(i, latents)
    return latents


def make_network(device: torch.device, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    network = UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
        norm_num_groups=4, cross_attention_dim=32, attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return network.to(device, dtype).eval()


class Denoiser:
    def __init__(self, request: Any, options: ModelOptions, device: torch.device) -> None:
        self.model = make_network(device, options.torch_dtype)
        g = torch.Generator().manual_seed(request.seed)
        shape = BATCH, 7, 32
        self.prompts = {b: torch.randn(shape, generator=g).to(device, options.torch_dtype) for b in ("uncond", "cond")}
        self.timesteps = make_scheduler(request).timesteps.to(device)

    def velocity(self, x_t: Tensor, step: int, branch: str, t: Tensor | None = None) -> Tensor:
        at = self.timesteps[step] if t is None else t
        return self.model(x_t.to(self.model.dtype), at, self.prompts[branch], return_dict=False)[0]


class AncestralTarget:
    name = "diffusers UNet, ancestral"
    expects = {"parallel": "local"}  # noqa: RUF012
    ignores = ("timestep_shift", "cfg_interval", "cfg_img_scale", "cfg_renorm_type", "cfg_renorm_min")

    def __init__(self) -> None:
        self.loops = {"reference": self.loop, "parallel": self.loop}

    def branches(self, request: Any) -> tuple[str, ...]:
        return "uncond", "cond"

    def schedule(self, request: Any) -> Schedule:
        # How far an ancestral step moves x_t depends on the noise it adds: it has no size.
        times = make_scheduler(request).timesteps.tolist()
        return Schedule.without_sizes(times, (True,) * len(times))

    def prepare(self, request: Any, options: ModelOptions, rank: int, device: torch.device) -> Prepared:
        denoiser = Denoiser(request, options, device)
        noise = torch.Generator().manual_seed(1000 * request.seed + rank)
        x_0 = torch.randn(BATCH, 4, request.height // 8, request.width // 8, generator=noise)
        x_0 = (x_0 * make_scheduler(request).init_noise_sigma).to(device, options.torch_dtype)
        caches = {branch: {"embeds": prompt} for branch, prompt in denoiser.prompts.items()}

        def scaled(x_t: Tensor, step: int) -> Tensor:
            scheduler = make_scheduler(request)
            return scheduler.scale_model_input(x_t, scheduler.timesteps[step])

        return Prepared(denoiser, x_0, caches, input=scaled)

    def generator(self, request: Any, group: Any) -> torch.Generator:
        return torch.Generator().manual_seed(request.seed)

    def loop(
        self, denoiser: Any, request: Any, x_0: Tensor, group: Any, observe: Any, first: int = 0, generator: Any = None
    ) -> Tensor:
        generator = self.generator(request, group) if generator is None else generator
        return engine_loop(
            lambda latents, t, branch: denoiser.velocity(latents, None, branch, t=t), make_scheduler(request), x_0,
            ("uncond", "cond"), request.cfg_text_scale, group if group is not None and group.world_size > 1 else None,
            generator, lambda i, latents: observe(i, latents, {"noise": generator}), first,
        )  # fmt: skip

    def resume(self, denoiser: Any, request: Any, x_t: Tensor, step: int, state: Any, observe: Any) -> Tensor:
        """The reference from ``step`` on, with the generator as it was before it."""
        return self.loop(denoiser, request, x_t, None, observe, step, state["noise"])


class OwnNoise(AncestralTarget):
    """A bug: each rank seeds the noise of its steps with its rank."""

    name = "diffusers UNet, ancestral, noise of each rank"

    def generator(self, request: Any, group: Any) -> torch.Generator:
        return torch.Generator().manual_seed(request.seed + group.rank)


class FallenBack(AncestralTarget):
    """A bug: sent to rank 1, the generator arrives with its seed and without its state, as it was before it drew."""

    name = "diffusers UNet, ancestral, generator back at its seed"

    def generator(self, request: Any, group: Any) -> torch.Generator:
        generator = super().generator(request, group)
        torch.randn(5, generator=generator)
        return generator if group.rank != 1 else torch.Generator().manual_seed(generator.initial_seed())
