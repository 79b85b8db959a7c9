"""The built-in target: this package's own Bagel and its loops."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from verify.bagel import fused
from verify.bagel.checkpoint import load_model
from verify.bagel.config import preset
from verify.bagel.denoiser import BagelDenoiser, initial_noise
from verify.bagel.model import BagelModel, Context
from verify.bagel.weights import build_model
from verify.loops import LOOPS
from verify.protocols import Loop
from verify.request import DenoiseRequest
from verify.targets.protocol import ModelOptions, Prepared

WEIGHTS_SEED = 1


class BuiltinTarget:
    """Bagel as this package writes it, with seeded weights or a checkpoint."""

    name = "builtin"
    loops: Mapping[str, Loop] = LOOPS
    expects: Mapping[str, str] = {name: name for name in LOOPS}
    default = ("broadcast", "local")  # The two that engines had; round_robin is for other world sizes.

    def prepare(self, request: DenoiseRequest, options: ModelOptions, rank: int, device: torch.device) -> Prepared:
        """The denoiser of this request; the network under it is kept for the next one."""
        model = _model(options.preset, options.dtype, options.checkpoint, device)
        denoiser = BagelDenoiser(model, request)
        return Prepared(
            denoiser,
            # Latents are float32, whatever the network's half format; a float64 network keeps them in float64.
            initial_noise(request, model.config.latent_channels, rank).to(device, model.exact_dtype),
            {branch: _by_layer(context) for branch, context in denoiser.contexts.items()},
            environment={"norm_and_rope": fused.state(device, model.dtype)} if device.type == "cuda" else {},
        )


@lru_cache(maxsize=1)
def _model(preset_name: str, dtype: str, checkpoint: str | None, device: torch.device) -> BagelModel:
    if checkpoint is not None:
        return load_model(Path(checkpoint), getattr(torch, dtype), device)
    return build_model(preset(preset_name).config, getattr(torch, dtype), device, WEIGHTS_SEED)


def _by_layer(context: Context) -> dict[str, Tensor]:
    tensors = {"keys": context.keys, "values": context.values}
    return {f"{name}, layer {layer}": tensor[layer] for name, tensor in tensors.items() for layer in range(len(tensor))}
