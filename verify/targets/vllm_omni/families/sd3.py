"""Stable Diffusion 3: its ``diffuse``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from verify.targets.vllm_omni.families.family import Family


class StableDiffusion3(Family):
    """Planes of 16 channels."""

    name = "sd3"
    module = "sd3.pipeline_sd3"
    pipeline_class = "StableDiffusion3Pipeline"
    shape = (1, 16, None, None)
    axis = 1

    def denoise(self, pipeline: Any, x_0: Tensor) -> Tensor:
        positive, negative = self.prompts.values()
        final: Tensor = pipeline.diffuse(
            latents=x_0,
            timesteps=pipeline.scheduler.timesteps,
            prompt_embeds=positive,
            pooled_prompt_embeds=positive[:, 0],
            negative_prompt_embeds=negative,
            negative_pooled_prompt_embeds=negative[:, 0],
            do_true_cfg=self.asked.scale > 1.0,
            guidance_scale=self.asked.scale,
        )
        return final
