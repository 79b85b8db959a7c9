"""LongCat-Image: its ``forward``, whose encoder gives the seeded prompts, up to the latent."""

from __future__ import annotations

from typing import Any

import numpy
from torch import Tensor

from verify.targets.vllm_omni.families.family import Asked, Family, diffusers


class LongCatImage(Family):
    """Tokens of 16 channels; the combine holds the norm of the first branch's."""

    name = "longcat_image"
    module = "longcat_image.pipeline_longcat_image"
    pipeline_class = "LongCatImagePipeline"

    @classmethod
    def scheduler(cls, asked: Asked) -> Any:
        made = diffusers("FlowMatchEulerDiscreteScheduler")(shift=asked.shift, stochastic_sampling=asked.stochastic)
        made.set_timesteps(sigmas=numpy.linspace(1.0, 1.0 / asked.steps, asked.steps))
        return made

    def parts(self) -> dict[str, Any]:
        return {
            "scheduler": self.scheduler(self.asked),
            "transformer": self.network,
            "check_inputs": lambda *_, **__: None,
            "encode_prompt": self.encoded,
            "prepare_latents": lambda *given: (given[-1], given[-1].new_zeros(given[-1].shape[1], 3)),
            "default_sample_size": 8,
            "vae_scale_factor": 8,
        }

    def denoise(self, pipeline: Any, x_0: Tensor) -> Tensor:
        final: Tensor = pipeline.forward(self.request(x_0)).output
        return final
