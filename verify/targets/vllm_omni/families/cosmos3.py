"""Cosmos 3: its ``diffuse`` of video alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from verify.targets.vllm_omni.families.family import Asked, StandIn, stand_in_for
from verify.targets.vllm_omni.families.wan2_2 import READS_PICTURES, Wan22


class Cosmos3(Wan22):
    """Three frames of 16 channels, stepped by UniPC. The transformer encodes the prompt itself, from token ids."""

    name = "cosmos3"
    module = "cosmos3.pipeline_cosmos3"
    pipeline_class = "Cosmos3OmniDiffusersPipeline"
    prompt = "text_ids"
    steps_with = "scheduler"

    def __init__(self, asked: Asked, device: torch.device) -> None:
        super().__init__(asked, device)
        self.network = _ReadsIds(self.channels, self.axis, asked.dtype).to(device)

    def parts(self) -> dict[str, Any]:
        server = "vllm_omni.entrypoints"
        stand_in_for(server, f"{server}.openai", f"{server}.openai.video_api_utils", *READS_PICTURES)
        return {
            "scheduler": self.upstreams_scheduler(),
            "transformer": self.network,
            "_new_cosmos3_state": lambda *_: None,
            "_kv_reset_und": lambda *_, **__: None,
            "_kv_load_und": lambda *_, **__: True,
            "_set_denoise_step_metadata": lambda *_, **__: None,
            "_clear_denoise_step_metadata": lambda *_, **__: None,
            "_set_mixed_precision_step": lambda *_, **__: None,
            "_reset_mixed_precision": lambda *_, **__: None,
            "_cosmos3_branch_caches": None,
            "_cache_dit_requires_paired_cfg": False,
        }

    def denoise(self, pipeline: Any, x_0: Tensor) -> Tensor:
        positive, negative = self.prompts.values()
        final: Tensor = pipeline.diffuse(
            latents=x_0,
            timesteps=pipeline.scheduler.timesteps,
            cond_ids=positive,
            cond_mask=self.mask(),
            uncond_ids=negative,
            uncond_mask=self.mask(),
            guidance_scale=self.asked.scale,
            shared_kwargs={},
        )
        return final


class _ReadsIds(StandIn):
    """Takes the prompt under the name of the token ids; a tensor alone is what Cosmos's transformer returns."""

    # What upstream keeps of the prompt's keys and values between steps, on the transformer itself.
    cached_kv: Any = None
    cached_freqs_gen: Any = None

    def forward(self, hidden_states: Tensor, timestep: Tensor, text_ids: Tensor, **_: Any) -> Tensor:  # type: ignore[override]
        return super().forward(hidden_states, timestep, text_ids)[0]
