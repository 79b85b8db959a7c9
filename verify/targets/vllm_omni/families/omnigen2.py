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
    """Planes of 16 channels. Time rises from noise at 0, so that a step adds. The image tells two branches apart."""

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
        self.prompts["image"] = self.prompts["neither"]

    @classmethod
    def schedule(cls, asked: Asked) -> Schedule:
        points = torch.linspace(0, 1, asked.steps + 1)  # Told as times that fall from 1.
        guided = (asked.scale > 1.0,) * asked.steps
        return Schedule(tuple((1 - points[:-1]).tolist()), points[1:] - points[:-1], guided)

    def parts(self) -> dict[str, Any]:
        made = importlib.import_module(f"vllm_omni.diffusion.models.{self.module}").FlowMatchEulerDiscreteScheduler
        unscaled = SimpleNamespace(scaling_factor=None, shift_factor=None)
        return {
            "scheduler": made(dynamic_time_shift=False),
            "transformer": self.network,
            "vae": SimpleNamespace(config=unscaled, decode=lambda latent, **_: (latent,)),
            "predict": self._predict,
            "text_guidance_scale": self.asked.scale,
            "image_guidance_scale": 2.0 if self.asked.scale > 1.0 else 1.0,
            "cfg_range": (0.0, 1.0),
        }

    def _predict(self, t: Tensor, latents: Tensor, prompt_embeds: Tensor, **beside: Any) -> Any:
        reference = beside["ref_image_hidden_states"]
        image = 0.0 if reference is None else reference[0][0].mean()
        return self.network(latents, t.expand(len(latents)), prompt_embeds + image)[0]

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
        without_prompt = "neither" if call["ref_image_hidden_states"] is None else "image"
        return "both" if call["prompt_embeds"] is self.prompts["both"] else without_prompt
