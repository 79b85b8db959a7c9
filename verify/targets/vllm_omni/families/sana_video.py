"""SANA-Video: its ``diffuse``."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from verify.targets.vllm_omni.families.family import Family
from verify.targets.vllm_omni.loops import replaced


class SanaVideo(Family):
    """Three frames of 16 channels.

    In one process upstream runs both branches as one batch, with other bits. So the reference takes the path through
    the mixin, as several ranks do, and the mixin evaluates one branch after another.
    """

    name = "sana_video"
    module = "sana_video.pipeline_sana_video"
    pipeline_class = "SanaVideoPipeline"
    shape = (1, 16, 3, None, None)
    axis = 1
    steps_with = "scheduler"

    def denoise(self, pipeline: Any, x_0: Tensor) -> Tensor:
        positive, negative = self.prompts.values()
        with self._through_the_mixin():
            final: Tensor = pipeline.diffuse(
                latents=x_0,
                timesteps=pipeline.scheduler.timesteps,
                prompt_embeds=positive,
                prompt_attention_mask=self.mask(),
                negative_prompt_embeds=negative,
                negative_prompt_attention_mask=self.mask(),
                guidance_scale=self.asked.scale,
                extra_step_kwargs={},
                dtype=self.asked.dtype,
                output_slice=None,
            )
        return final

    @contextmanager
    def _through_the_mixin(self) -> Iterator[None]:
        module = importlib.import_module(f"vllm_omni.diffusion.models.{self.module}")
        with (
            replaced(module, "get_classifier_free_guidance_world_size", lambda: 2),
            replaced(module, "model_parallel_is_initialized", lambda: True),
        ):
            yield
