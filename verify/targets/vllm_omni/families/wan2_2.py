"""Wan 2.2: its ``diffuse``, with the UniPC scheduler that upstream makes for it."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from verify.schedule import Schedule
from verify.targets.vllm_omni.families.family import Asked, Family, stand_in_for

# For the frames that upstream reads and writes.
READS_PICTURES = ("av", "torchvision", "torchvision.transforms", "torchvision.transforms.functional")


class Wan22(Family):
    """Three frames of 16 channels. UniPC remembers earlier velocities."""

    name = "wan2_2"
    module = "wan2_2.pipeline_wan2_2"
    pipeline_class = "Wan22Pipeline"
    shape = (1, 16, 3, None, None)
    axis = 1
    draws = False

    @classmethod
    def schedule(cls, asked: Asked) -> Schedule:
        """Sigmas from 0.999, evenly spaced, then shifted; the times are whole numbers."""
        points = torch.linspace(0.999, 0.0, asked.steps + 1, dtype=torch.float64)
        sigmas = asked.shift * points / (1 + (asked.shift - 1) * points)
        times = tuple(float(int(sigma * 1000)) for sigma in sigmas[:-1].tolist())
        return Schedule(times, (sigmas[:-1] - sigmas[1:]).float(), (asked.scale > 1.0,) * asked.steps)

    def parts(self) -> dict[str, Any]:
        stand_in_for(*READS_PICTURES)
        return {
            "scheduler": self.upstreams_scheduler(),
            "transformer": self.network,
            "transformer_2": None,
            "expand_timesteps": False,
            "is_dmd": False,
            "record_denoise_step": lambda *_, **__: None,
        }

    def upstreams_scheduler(self) -> Any:
        """UniPC for flows, as upstream makes it for Wan."""
        wan = importlib.import_module("vllm_omni.diffusion.models.wan2_2.pipeline_wan2_2")
        scheduler = wan.build_wan_scheduler("unipc", self.asked.shift)
        scheduler.set_timesteps(self.asked.steps, device=self.device, shift=self.asked.shift)
        return scheduler

    def denoise(self, pipeline: Any, x_0: Tensor) -> Tensor:
        positive, negative = self.prompts.values()
        final: Tensor = pipeline.diffuse(
            latents=x_0,
            timesteps=pipeline.scheduler.timesteps,
            prompt_embeds=positive,
            negative_prompt_embeds=negative,
            guidance_low=self.asked.scale,
            guidance_high=self.asked.scale,
            boundary_timestep=None,
            dtype=self.asked.dtype,
            attention_kwargs={},
        )
        return final
