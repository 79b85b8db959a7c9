"""FLUX.2 klein: its ``forward``, whose encoder gives the seeded prompts, up to where the latent is unpacked."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from verify.targets.vllm_omni.families.longcat_image import LongCatImage


class Flux2Klein(LongCatImage):
    """Tokens of 16 channels; the request is made as LongCat-Image's."""

    name = "flux2_klein"
    module = "flux2_klein.pipeline_flux2_klein"
    pipeline_class = "Flux2KleinPipeline"

    def parts(self) -> dict[str, Any]:
        return super().parts() | {
            "_execution_device": self.device,
            "prepare_latents": lambda latents, **_: (latents, latents.new_zeros(latents.shape[1], 4)),
            "_unpack_latents_with_ids": _reached,
        }

    def denoise(self, pipeline: Any, x_0: Tensor) -> Tensor:
        try:
            pipeline.forward(self.request(x_0))
        except _Reached as end:
            return end.latent
        raise LookupError("flux2_klein: forward ended without unpacking its latent")


class _Reached(Exception):
    """The loop is over; a VAE would come next."""

    def __init__(self, latent: Tensor) -> None:
        super().__init__()
        self.latent = latent


def _reached(latents: Tensor, *_: Any) -> Tensor:
    raise _Reached(latents)
