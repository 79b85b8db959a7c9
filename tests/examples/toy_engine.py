"""An imagined engine: a two-branch pipeline with a diffusers-style scheduler. It knows nothing of this suite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

CHANNELS, WIDTH, WORDS = 12, 32, 5


class Transformer(nn.Module):
    """Noise prediction ``(tokens, 12)`` from latents, a timestep from 1000 to 0 and an embedded prompt ``(5, 32)``."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.into, self.time, self.out = nn.Linear(CHANNELS, WIDTH), nn.Linear(1, WIDTH), nn.Linear(WIDTH, CHANNELS)
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            parameter.requires_grad_(False).copy_(torch.randn(parameter.shape, generator=generator) / 4)

    def forward(self, sample: Tensor, timestep: Tensor, prompt_embeds: Tensor) -> Tensor:
        x = self.into(sample) + self.time(timestep.reshape(1, 1) / 1000)
        x = x + torch.softmax(x @ prompt_embeds.T, -1) @ prompt_embeds
        out: Tensor = self.out(torch.nn.functional.silu(x))
        return out


class Step(NamedTuple):
    prev_sample: Tensor


class EulerScheduler:
    """Sigmas from 1 to 0; a step is handed the timestep, not its number."""

    def set_timesteps(self, num_inference_steps: int, device: torch.device) -> None:
        self.sigmas = torch.linspace(1, 0, num_inference_steps + 1, device=device)
        self.timesteps = self.sigmas[:-1] * 1000
        self.index = 0

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor) -> Step:
        change = self.sigmas[self.index + 1] - self.sigmas[self.index]
        self.index += 1
        return Step(sample + model_output * change)


class Pipeline:
    """``cfg_group`` has ``rank``, ``all_gather`` and ``broadcast``; without one, the branches run in turn."""

    scheduler_class: Any = EulerScheduler

    def __init__(self, transformer: Callable[[Tensor, Tensor, Tensor], Tensor], cfg_group: Any = None) -> None:
        self.transformer, self.cfg_group = transformer, cfg_group

    def __call__(
        self,
        latents: Tensor,
        prompt_embeds: Tensor,
        negative_prompt_embeds: Tensor,
        num_inference_steps: int,
        guidance_scale: float,
        callback_on_step_end: Callable[[int, Tensor], None],
    ) -> Tensor:
        scheduler = self.scheduler_class()
        scheduler.set_timesteps(num_inference_steps, latents.device)
        embeds = [prompt_embeds, negative_prompt_embeds]
        if self.cfg_group is not None:
            self.cfg_group.broadcast(latents)
        for i, t in enumerate(scheduler.timesteps):
            if self.cfg_group is not None:
                own = self.transformer(latents, t, embeds[self.cfg_group.rank])
                cond, uncond = self.cfg_group.all_gather(own)
            else:
                cond, uncond = (self.transformer(latents, t, each) for each in embeds)
            noise_pred = uncond + guidance_scale * (cond - uncond)
            latents = scheduler.step(noise_pred, t, latents).prev_sample
            callback_on_step_end(i, latents)
        return latents


class AncestralScheduler(EulerScheduler):
    """Adds noise in each step, from the process's own generator: a bug once ranks step for themselves."""

    def set_timesteps(self, num_inference_steps: int, device: torch.device) -> None:
        super().set_timesteps(num_inference_steps, device)
        self.generator = torch.Generator(device)
        self.generator.seed()

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor) -> Step:
        (stepped,) = super().step(model_output, timestep, sample)
        return Step(stepped + 1e-3 * torch.randn(stepped.shape, generator=self.generator, device=stepped.device))


class BrokenPipeline(Pipeline):
    scheduler_class = AncestralScheduler
