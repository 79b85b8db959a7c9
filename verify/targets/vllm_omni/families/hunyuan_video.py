"""HunyuanVideo 1.5: its ``forward``, whose encoders give the seeded prompts, up to the latent."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy
import torch
from torch import Tensor

from verify.targets.vllm_omni.families.family import Asked, Family, diffusers


class HunyuanVideo(Family):
    """Three frames of 16 channels; the network is given a condition and a mask beside them."""

    name = "hunyuan_video"
    module = "hunyuan_video.pipeline_hunyuan_video_1_5"
    pipeline_class = "HunyuanVideo15Pipeline"
    shape = (1, 16, 3, None, None)
    axis = 1

    @classmethod
    def scheduler(cls, asked: Asked) -> Any:
        made = diffusers("FlowMatchEulerDiscreteScheduler")(shift=asked.shift, stochastic_sampling=asked.stochastic)
        made.set_timesteps(sigmas=numpy.linspace(1.0, 0.0, asked.steps + 1)[:-1])
        return made

    def parts(self) -> dict[str, Any]:
        # Upstream asks the first block of its transformer for the dtype.
        block = SimpleNamespace(norm1=SimpleNamespace(linear=SimpleNamespace(weight=self.network.mix)))
        vars(self.network)["transformer_blocks"] = [block]
        positive, negative = self.prompts.values()
        encoded = (positive, self.mask(), positive, self.mask(), negative, self.mask(), negative, self.mask())
        return {
            "scheduler": self.scheduler(self.asked),
            "transformer": self.network,
            "encode_prompt": lambda **_: encoded,
            "prepare_latents": lambda latents, **_: latents,
            "vision_num_semantic_tokens": 2,
            "vision_states_dim": 8,
            "use_meanflow": False,
        }

    def denoise(self, pipeline: Any, x_0: Tensor) -> Tensor:
        final: Tensor = pipeline.forward(self.request(x_0), output_type="latent").output
        return final

    def latent_in(self, call: Mapping[str, Any]) -> Tensor:
        latent: Tensor = call[self.latents][:, : self.channels]
        return latent

    def with_latent(self, call: Mapping[str, Any], x_t: Tensor) -> dict[str, Any]:
        beside = call[self.latents][:, self.channels :]
        return dict(call) | {self.latents: torch.cat([x_t, beside], dim=1)}
