"""OmniGen2: its ``processing``, with three branches: prompt and image, the image alone, neither."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from verify.schedule import Schedule
from verify.targets.vllm_omni.families.family import Asked, Family


class OmniGen2(Family):
    """Planes of 16 channels. Its time rises from noise at 0, so that a step adds what the network says."""

    name = "omnigen2"
    module = "omnigen2.pipeline_omnigen2"
    pipeline_class = "OmniGen2Pipeline"
    branches = ("both", "image", "neither")
    shape = (1, 16, None, None)
    axis = 1
    latents = "latents"
    steps_with = "scheduler"
    falls = False
    draws = False
    stands_in = "its transformer with ``predict``, by one layer that reads latents, time, prompt and image"

    def __init__(self, asked: Asked, device: torch.device) -> None:
        super().__init__(asked, device)
        self.image = [[self.words(len(self.branches), 16, 4, 4)]]
        # The second and third branch have the same negative prompt, and are told apart by the image.
        self.prompts["image"] = self.prompts["neither"]

    @classmethod
    def schedule(cls, asked: Asked) -> Schedule:
        """N times from 0, evenly spaced; told as times that fall from 1."""
        points = torch.linspace(0, 1, asked.steps + 1, dtype=torch.float32)
        guided = (asked.scale > 1.0,) * asked.steps
        return Schedule(tuple((1 - points[:-1]).tolist()), points[1:] - points[:-1], guided)

    def parts(self) -> dict[str, Any]:
        made = importlib.import_module(f"vllm_omni.diffusion.models.{self.module}").FlowMatchEulerDiscreteScheduler
        vae = SimpleNamespace(
            config=SimpleNamespace(scaling_factor=None, shift_factor=None), decode=lambda latent, **_: (latent,)
        )
        return {
            "scheduler": made(dynamic_time_shift=False),
            "transformer": self.network,
            "vae": vae,
            "predict": self._predict,
            "text_guidance_scale": self.asked.scale,
            "image_guidance_scale": 2.0 if self.asked.scale > 1.0 else 1.0,
            "cfg_range": (0.0, 1.0),
        }

    def _predict(
        self, t: Tensor, latents: Tensor, prompt_embeds: Tensor, ref_image_hidden_states: Any, **_: Any
    ) -> Tensor:
        told = (
            prompt_embeds if ref_image_hidden_states is None else prompt_embeds + ref_image_hidden_states[0][0].mean()
        )
        predicted: Tensor = self.network(latents, t.expand(len(latents)), told)[0]
        return predicted

    def denoise(self, pipeline: Any, x_0: Tensor) -> Tensor:
        final: Tensor = pipeline.processing(
            latents=x_0,
            ref_latents=self.image,
            prompt_embeds=self.prompts["both"],
            freqs_cis=None,
            negative_prompt_embeds=self.prompts["neither"],
            prompt_attention_mask=None,
            negative_prompt_attention_mask=None,
            num_inference_steps=self.asked.steps,
            timesteps=None,
            device=self.device,
            dtype=self.asked.dtype,
            verbose=False,
        )
        return final

    def branch_of(self, call: Mapping[str, Any]) -> str:
        if call["prompt_embeds"] is self.prompts["both"]:
            return "both"
        return "neither" if call["ref_image_hidden_states"] is None else "image"
