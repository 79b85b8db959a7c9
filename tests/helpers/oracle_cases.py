"""A small request denoised twice: by PyTorch, right or with one thing wrong, and by the oracle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from unittest import mock

import numpy as np
import torch
from network_oracle.arithmetic import Arithmetic
from network_oracle.loop import Denoising
from network_oracle.model import Bagel
from network_oracle.schedule import schedule
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from verify.bagel import arithmetic, layers
from verify.bagel.config import PRESETS
from verify.bagel.context import condition_latents, prompt_tokens
from verify.bagel.denoiser import BagelDenoiser, initial_noise
from verify.bagel.model import BagelModel
from verify.bagel.weights import build_model
from verify.loops.reference import reference
from verify.oracle.combine import Number
from verify.oracle.formats import FLOAT32, FLOAT64, Format
from verify.ranks.group import Alone
from verify.request import DenoiseRequest

CPU = torch.device("cpu")
# PyTorch's fallback for a CPU without AVX2 has no fused multiply-add, and torch.linspace then has other bits.
FUSED = torch.backends.cpu.get_cpu_capability() != "DEFAULT"
CONFIG = PRESETS["tiny"].config
Array = NDArray[np.float64]

# Rows and columns differ, so that a transposed grid shows; two of the five steps lie outside the CFG interval.
REQUEST = DenoiseRequest(
    height=48, width=80, num_timesteps=6, cfg_interval=(0.5, 0.95), cfg_img_scale=1.5, cfg_renorm_type="global", seed=3
)


def as_float64(tensor: Tensor) -> Array:
    """The tensor's numbers, exactly."""
    array: Array = tensor.detach().double().numpy()
    return array


@lru_cache(maxsize=4)
def right_model(dtype: torch.dtype) -> BagelModel:
    """The tiny model; not to be written into."""
    return build_model(CONFIG, dtype, CPU, seed=1)


@dataclass(frozen=True)
class Subject:
    """What PyTorch makes of a request.

    Attributes:
        x: ``x_t`` before the first step and after each.
        denoiser: it, to ask for single velocities.
    """

    x: list[Tensor]
    denoiser: BagelDenoiser

    def velocity(self, step: int, branch: str) -> Array:
        """The velocity of ``branch`` where the loop stood."""
        with torch.no_grad():
            return as_float64(self.denoiser.velocity(self.x[step], step, branch))


def denoised(request: DenoiseRequest, dtype: torch.dtype, model: BagelModel | None = None) -> Subject:
    """The request, run by the reference loop."""
    model = model or right_model(dtype)
    denoiser = BagelDenoiser(model, request)
    x = [initial_noise(request, CONFIG.latent_channels)]
    with torch.no_grad():
        reference(denoiser, request, x[0], Alone(), lambda step, x_t, state=None: x.append(x_t))
    return Subject(x, denoiser)


def oracle(request: DenoiseRequest, dtype: torch.dtype, arithmetic: Arithmetic[Number]) -> Denoising[Number]:
    """The same request, with the right model's weights as ``dtype`` holds them."""
    model = right_model(dtype)
    weights = {name: as_float64(tensor) for name, tensor in model.state_dict().items()}
    return Denoising(
        Bagel(CONFIG, weights, arithmetic),
        request,
        schedule(request.num_timesteps, request.timestep_shift, request.cfg_interval, fused=FUSED),
        prompt_tokens(model, request.seed).tolist(),
        as_float64(condition_latents(model, request)),
    )


def latents_of(network: Format) -> Format:
    """``x_t`` starts in float32 and turns float64 with a float64 network."""
    return FLOAT64 if network is FLOAT64 else FLOAT32


Defect = Callable[[BagelModel], object]


def _norms(model: BagelModel, eps: float) -> None:
    for module in model.modules():
        if isinstance(module, layers.RMSNorm):
            module.eps = eps


def _zero(model: BagelModel, ending: str) -> None:
    for name, parameter in model.named_parameters():
        if name.endswith(ending):
            parameter.zero_()


def _swap(model: BagelModel, first: str, second: str) -> None:
    """Exchanges two submodules of every layer."""
    for layer in model.layers:
        a, b = layer.get_submodule(first), layer.get_submodule(second)
        layer.set_submodule(first, b)
        layer.set_submodule(second, a)


def _markers_through_gen(model: BagelModel) -> None:
    """Text still goes through ``und``; with an image, its markers go through ``gen`` like the latents."""

    class OneExpert(nn.Module):
        def __init__(self, layer: layers.DecoderLayer) -> None:
            super().__init__()
            self.layer, self.images = layer, layers.DecoderLayer(CONFIG)
            self.images.und = self.images.gen = layer.gen

        def forward(self, streams: list[Tensor], *rest: object) -> object:
            return (self.layer if len(streams) == 1 else self.images)(streams, *rest)

    model.layers = nn.ModuleList(OneExpert(layer) for layer in model.layers if isinstance(layer, layers.DecoderLayer))


WRONG_WEIGHTS: dict[str, Defect] = {
    "norm eps 1e-5": lambda m: _norms(m, 1e-5),
    "norm eps left out": lambda m: _norms(m, 0.0),
    "q bias dropped": lambda m: _zero(m, "q_proj.bias"),
    "k bias dropped": lambda m: _zero(m, "k_proj.bias"),
    "llm2vae bias dropped": lambda m: _zero(m, "llm2vae.bias"),
    "markers through gen": _markers_through_gen,
    "experts swapped": lambda m: _swap(m, "und", "gen"),
    "gate and up swapped": lambda m: _swap(m, "gen.mlp.gate_proj", "gen.mlp.up_proj"),
    "q and k norms swapped": lambda m: _swap(m, "gen.self_attn.q_norm", "gen.self_attn.k_norm"),
    "final norm of und": lambda m: m.norm.__setitem__("gen", m.norm["und"]),
    "end marker twice": lambda m: setattr(m, "config", replace(CONFIG, image_start=CONFIG.image_end)),
    "rope theta 10000": lambda m: setattr(m, "config", replace(CONFIG, rope_theta=1e4)),
    "positions a row too wide": lambda m: setattr(m, "config", replace(CONFIG, latent_side=CONFIG.latent_side + 1)),
}


def _attend_scaled(scale: float) -> Callable[..., Tensor]:
    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        out = F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=mask, scale=scale, enable_gqa=True)
        return out[0].transpose(0, 1).flatten(1)

    return attend


def _attend_interleaved(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    shared = len(q) // len(k)
    out = F.scaled_dot_product_attention(q[None], k.repeat(shared, 1, 1)[None], v.repeat(shared, 1, 1)[None], mask)
    return out[0].transpose(0, 1).flatten(1)


_attend, _rotation_at = layers.attend, arithmetic.rotation_at
WRONG_CODE: dict[str, tuple[str, Callable[..., object]]] = {
    "no rope": ("verify.bagel.arithmetic.rotate", lambda x, rotation: x),
    "no 1/sqrt(d)": ("verify.bagel.layers.attend", _attend_scaled(1.0)),
    "1/d for 1/sqrt(d)": ("verify.bagel.layers.attend", _attend_scaled(1 / CONFIG.head_dim)),
    "text not causal": ("verify.bagel.layers.attend", lambda q, k, v, mask: _attend(q, k, v, None)),
    "key heads interleaved": ("verify.bagel.layers.attend", _attend_interleaved),
    "sine's sign": (
        "verify.bagel.model.rotation_at",
        lambda positions, *rest: _rotation_at(-positions, *rest),
    ),
    "position off by one": (
        # The image's only, and only once it has a context: all tokens moved together would be the same.
        "verify.bagel.model.rotation_at",
        lambda p, *rest: _rotation_at(p + (len(p) == 1 and p.item() > 0), *rest),
    ),
    "gelu for silu": ("verify.bagel.layers.silu_times", lambda gate, up: F.gelu(gate) * up),
}

DEFECTS = [*WRONG_WEIGHTS, *WRONG_CODE]


@contextmanager
def with_defect(name: str, dtype: torch.dtype) -> Iterator[BagelModel]:
    """A model with one thing wrong."""
    model = build_model(CONFIG, dtype, CPU, seed=1)
    if name in WRONG_WEIGHTS:
        WRONG_WEIGHTS[name](model)
        yield model
    else:
        where, wrong = WRONG_CODE[name]
        with mock.patch(where, wrong):
            yield model
