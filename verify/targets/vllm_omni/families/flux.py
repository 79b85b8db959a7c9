"""FLUX.1: its ``diffuse``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from verify.targets.vllm_omni.families.family import Family


class Flux(Family):
    """Tokens of 16 channels."""

    name = "flux"
    module = "flux.pipeline_flux"
    pipeline_class = "FluxPipeline"

    def denoise(self, pipeline: Any, x_0: Tensor) -> Tensor:
        positive, negative = self.prompts.values()
        ids = x_0.new_zeros(positive.shape[1], 3)
        final: Tensor = pipeline.diffuse(
            prompt_embeds=positive,
            pooled_prompt_embeds=positive[:, 0],
            negative_prompt_embeds=negative,
            negative_pooled_prompt_embeds=negative[:, 0],
            latents=x_0,
            latent_image_ids=x_0.new_zeros(x_0.shape[1], 3),
            text_ids=ids,
            negative_text_ids=ids,
            timesteps=pipeline.scheduler.timesteps,
            do_true_cfg=self.asked.scale > 1.0,
            guidance=None,
            true_cfg_scale=self.asked.scale,
        )
        return final
