"""The built-in target: this package's own Bagel and its loops."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from verify.bagel import fused
from verify.bagel.checkpoint import config_of, load_model, weights_told
from verify.bagel.conditioning import read_conditioning
from verify.bagel.config import preset
from verify.bagel.denoiser import BagelDenoiser, initial_noise
from verify.bagel.graphs import Graphs
from verify.bagel.model import BagelModel, Context
from verify.bagel.options import BagelOptions
from verify.bagel.picture import picture_of
from verify.bagel.published import size_of
from verify.bagel.weights import build_model
from verify.expected import Exchanges
from verify.loops import LOOPS
from verify.protocols import Denoiser, Loop
from verify.request import DenoiseRequest
from verify.targets.protocol import ModelOptions, Prepared

WEIGHTS_SEED = 1


class BuiltinTarget:
    """Bagel as this package writes it, with seeded weights or a checkpoint."""

    name = "builtin"
    loops: Mapping[str, Loop] = LOOPS
    expects: Mapping[str, str | Exchanges] = {name: name for name in LOOPS}
    any_world = True
    bagel_options = tuple(BagelOptions.__dataclass_fields__)
    default = ("broadcast", "local")  # The two that engines had; round_robin is for other world sizes.

    def __init__(self) -> None:
        self._graphs = Graphs()

    def prepare(self, request: DenoiseRequest, options: ModelOptions, rank: int, device: torch.device) -> Prepared:
        """The denoiser of this request; the network under it is kept for the next one."""
        asked = options.bagel or BagelOptions()
        model, weights = _told_model(options.preset, options.dtype, options.checkpoint, asked.weights, device)
        conditioning = read_conditioning(asked, options.checkpoint, model.config)
        denoiser = BagelDenoiser(model, request, conditioning)
        # Latents are float32, whatever the network's half format; a float64 network keeps them in float64.
        x_0 = initial_noise(request, model.config.latent_channels, rank).to(device, model.exact_dtype)
        notes = (*weights, *conditioning.notes())
        evaluated: Denoiser = denoiser
        if _uses_graphs(asked, model):
            evaluated, told = self._graphs.if_equal(denoiser, x_0, request.schedule.steps)
            notes = (*notes, told)
        return Prepared(
            evaluated,
            x_0,
            {branch: _by_layer(context) for branch, context in denoiser.contexts.items()},
            notes,
            # Without an image and a thought both have read the prompt alone.
            alike=(("gen", "img"),) if conditioning.images == () and conditioning.thought is None else (),
            environment={"fused": fused.told(device, model.dtype)} if device.type == "cuda" else {},
        )

    def picture(self, request: DenoiseRequest, options: ModelOptions, latent: Tensor) -> tuple[bytes, str]:
        """A final latent as a PNG file, and what a reader must know of it."""
        asked = options.bagel or BagelOptions()
        if options.checkpoint is None:
            config = preset(options.preset).config
        else:
            config = config_of(Path(options.checkpoint), asked.weights)
        return picture_of(latent, request.grid, options.checkpoint, config)


def _uses_graphs(asked: BagelOptions, model: BagelModel) -> bool:
    """Asked for, or left open at the size where a pass waits for its launches and recording pays."""
    on_gpu = model.device.type == "cuda"
    return on_gpu and (size_of(model.config) == "7b" if asked.cuda_graph is None else asked.cuda_graph)


def _model(preset_name: str, dtype: str, checkpoint: str | None, device: torch.device) -> BagelModel:
    """The network alone, for targets that put something of their own around it."""
    return _told_model(preset_name, dtype, checkpoint, None, device)[0]


@lru_cache(maxsize=1)
def _told_model(
    preset_name: str, dtype: str, checkpoint: str | None, weights: str | None, device: torch.device
) -> tuple[BagelModel, tuple[str, ...]]:
    """The network, and what a report says of its weights where they are a checkpoint's."""
    if checkpoint is None:
        return build_model(preset(preset_name).config, getattr(torch, dtype), device, WEIGHTS_SEED), ()
    model = load_model(Path(checkpoint), getattr(torch, dtype), device, weights)
    return model, (weights_told(Path(checkpoint), weights),)


def _by_layer(context: Context) -> dict[str, Tensor]:
    tensors = {"keys": context.keys, "values": context.values}
    return {f"{name}, layer {layer}": tensor[layer] for name, tensor in tensors.items() for layer in range(len(tensor))}
