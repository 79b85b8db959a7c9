"""Qwen-Image: its ``diffuse``, with the renorm that its combine has by default."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from verify.targets.vllm_omni.families.family import Family


class QwenImage(Family):
    """Tokens of 16 channels."""

    name = "qwen_image"
    module = "qwen_image.pipeline_qwen_image"
    pipeline_class = "QwenImagePipeline"

    def denoise(self, pipeline: Any, x_0: Tensor) -> Tensor:
        positive, negative = self.prompts.values()
        final: Tensor = pipeline.diffuse(
            prompt_embeds=positive,
            prompt_embeds_mask=self.mask(),
            negative_prompt_embeds=negative,
            negative_prompt_embeds_mask=self.mask(),
            latents=x_0,
            img_shapes=[[(1, *self.asked.grid)]],
            txt_seq_lens=[positive.shape[1]],
            negative_txt_seq_lens=[negative.shape[1]],
            timesteps=pipeline.scheduler.timesteps,
            do_true_cfg=self.asked.scale > 1.0,
            guidance=None,
            true_cfg_scale=self.asked.scale,
        )
        return final
