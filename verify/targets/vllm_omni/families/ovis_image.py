"""Ovis-Image: its ``diffuse``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from verify.targets.vllm_omni.families.family import Family


class OvisImage(Family):
    """Tokens of 16 channels."""

    name = "ovis_image"
    module = "ovis_image.pipeline_ovis_image"
    pipeline_class = "OvisImagePipeline"

    def denoise(self, pipeline: Any, x_0: Tensor) -> Tensor:
        positive, negative = self.prompts.values()
        ids = x_0.new_zeros(positive.shape[1], 3)
        final: Tensor = pipeline.diffuse(
            latents=x_0,
            timesteps=pipeline.scheduler.timesteps,
            prompt_embeds=positive,
            negative_prompt_embeds=negative,
            text_ids=ids,
            negative_text_ids=ids,
            latent_image_ids=x_0.new_zeros(x_0.shape[1], 3),
            do_true_cfg=self.asked.scale > 1.0,
            guidance_scale=self.asked.scale,
        )
        return final
