"""vllm-omni's Bagel, built by its own classes and filled by its own weights loader."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from verify.bagel.config import BagelConfig
from verify.errors import Unjudged

_PACKAGE = "vllm_omni.diffusion.models.bagel"
# The text head takes no part in denoising, and checkpoints for it need not hold one.
_NOT_NEEDED = "lm_head"
LATENT_PATCH = 2


def build_upstream(
    config: BagelConfig, tensors: Iterable[tuple[str, Tensor]], dtype: torch.dtype, device: torch.device
) -> Any:
    """The model on ``device``, in evaluation mode.

    Args:
        config: the geometry.
        tensors: name and value of every weight, in BAGEL-7B-MoT's published layout.
        dtype: of the parameters.
        device: where the model is made.

    Raises:
        Unjudged: upstream's loader left a parameter without a weight.
    """
    transformer = importlib.import_module(f"{_PACKAGE}.bagel_transformer")
    llm_config = transformer.Qwen2MoTConfig(
        vocab_size=config.vocab,
        hidden_size=config.hidden,
        intermediate_size=config.mlp,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        rope_theta=config.rope_theta,
        rms_norm_eps=config.norm_eps,
        layer_module="Qwen2MoTDecoderLayer",
        pad_token_id=None,
    )
    bagel_config = importlib.import_module("vllm.transformers_utils.configs.bagel").BagelConfig(
        visual_und=False,
        llm_config=llm_config,
        vae_config=SimpleNamespace(z_channels=config.latent_channels // LATENT_PATCH**2, downsample=8),
        latent_patch_size=LATENT_PATCH,
        max_latent_size=config.latent_side,
    )
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            model = transformer.Bagel(transformer.Qwen2MoTForCausalLM(llm_config), None, bagel_config).eval()
    finally:
        torch.set_default_dtype(default)
    model.requires_grad_(False)
    model = model.to(device)
    _load(model, tensors)
    return model


def _load(model: nn.Module, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """By the pipeline's loader, on a pipeline that is only a shell around this model; what it misses stays NaN."""
    for parameter in model.parameters():
        parameter.fill_(float("nan"))
    pipeline_class = importlib.import_module(f"{_PACKAGE}.pipeline_bagel").BagelPipeline
    pipeline = pipeline_class.__new__(pipeline_class)
    nn.Module.__init__(pipeline)
    pipeline.language_model = model.language_model  # Before the whole, as in the real pipeline: the loader minds it.
    pipeline.bagel = model
    pipeline.load_weights(iter(tensors))
    missed = [
        name for name, parameter in model.named_parameters() if _NOT_NEEDED not in name and parameter.isnan().any()
    ]
    if missed:
        raise Unjudged(
            f"upstream's weights loader left {len(missed)} parameters without a weight ({', '.join(missed[:3])}, ...): "
            "the published names have changed; nothing was judged"
        )
