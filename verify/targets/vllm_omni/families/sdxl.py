"""Stable Diffusion XL: its ``diffuse``, with an Euler scheduler whose network sees a scaled latent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from verify.targets.vllm_omni.families.family import Asked, Family, diffusers


class StableDiffusionXL(Family):
    """Planes of 4 channels. ``x_t`` is the latent before it is scaled for the network."""

    name = "sdxl"
    module = "sdxl.pipeline_sdxl"
    pipeline_class = "StableDiffusionXLPipeline"
    shape = (1, 4, None, None)
    axis = 1

    @classmethod
    def scheduler(cls, asked: Asked) -> Any:
        made = diffusers("EulerAncestralDiscreteScheduler" if asked.stochastic else "EulerDiscreteScheduler")()
        made.set_timesteps(asked.steps)
        return made

    def parts(self) -> dict[str, Any]:
        scheduler = self.scheduler(self.asked)
        scale = scheduler.scale_model_input

        def noted(sample: Tensor, t: Tensor) -> Tensor:
            scaled: Tensor = scale(sample, t)
            self._unscaled[id(scaled)] = sample, scaled  # Kept with it, or its id would be another's.
            return scaled

        self._unscaled: dict[int, tuple[Tensor, Tensor]] = {}
        scheduler.scale_model_input = noted
        return {"scheduler": scheduler, "transformer": self.network, "unet": self.network}

    def denoise(self, pipeline: Any, x_0: Tensor) -> Tensor:
        positive, negative = self.prompts.values()
        final: Tensor = pipeline.diffuse(
            latents=x_0,
            timesteps=pipeline.scheduler.timesteps,
            prompt_embeds=positive,
            added_cond_kwargs={},
            negative_prompt_embeds=negative,
            negative_added_cond_kwargs={},
            do_cfg=self.asked.scale > 1.0,
            guidance_scale=self.asked.scale,
        )
        return final

    def latent_in(self, call: Mapping[str, Any]) -> Tensor:
        return self._unscaled[id(call[self.latents])][0]

    def with_latent(self, call: Mapping[str, Any], x_t: Tensor) -> dict[str, Any]:
        scaled = self.scheduler(self.asked).scale_model_input(x_t, call["timestep"][0])
        return dict(call) | {self.latents: scaled}
