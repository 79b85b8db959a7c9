"""How BAGEL-7B-MoT's published checkpoint names and describes things."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

from verify.bagel.config import PRESETS, BagelConfig
from verify.bagel.tensor_files import json_object
from verify.errors import BadInput

CONFIG_FILE = "llm_config.json"
WEIGHTS_FILE = "ema.safetensors"
OTHER_WEIGHTS_FILE = "model.safetensors"
WHOLE_CONFIG_FILE = "config.json"

# Parts of the published file that this model does not have: the image encoder and the text head.
NOT_USED = ("vit_model.", "connector.", "vit_pos_embed.", "language_model.lm_head.")

# Begin, end, image start and image end in Qwen2.5's tokenizer. A smaller vocabulary gives them its last four rows.
_QWEN_MARKERS = (151644, 151645, 151652, 151653)

_SIZES = {
    "hidden": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "mlp": "intermediate_size",
    "vocab": "vocab_size",
}

# What a configuration may say besides sizes and what this model then computes; anything else would load and be wrong.
_FIXED = {"hidden_act": "silu", "rope_scaling": None, "use_sliding_window": False}

# The position table follows a fixed formula, so a checkpoint may leave it out.
POSITIONS = "latent_pos_embed.pos_embed"
_LATENTS_IN = "vae2llm.weight"
# Positions a side of the published model, and the key of its configuration that says so.
_SIDE, _SIDE_KEY = 64, "max_latent_size"


def published_name(name: str) -> str:
    """The published file's name for one parameter of :class:`BagelModel`."""
    if name == "embed_tokens":
        return "language_model.model.embed_tokens.weight"
    if name == "latent_pos_embed":
        return POSITIONS
    if match := re.fullmatch(r"norm\.(und|gen)\.weight", name):
        return f"language_model.model.norm{_suffix(match[1])}.weight"
    if match := re.fullmatch(r"layers\.(\d+)\.(und|gen)\.(.+)", name):
        layer, expert, rest = match.groups()
        # The parts of attention carry the expert's suffix one by one; a norm or the MLP carries it as a whole.
        inner = re.sub(r"^(self_attn\.\w+|\w+)", lambda part: part[0] + _suffix(expert), rest)
        return f"language_model.model.layers.{layer}.{inner}"
    return name


def _suffix(expert: str) -> str:
    return "_moe_gen" if expert == "gen" else ""


def read_config(directory: Path, shapes: Mapping[str, tuple[int, ...]]) -> BagelConfig:
    """The geometry: from the configuration file, and for the latents from the ``shapes`` of the tensors, by name.

    Raises:
        BadInput: the file cannot be read, lacks a key or describes something else than a Bagel.
    """
    path = directory / CONFIG_FILE
    loaded = json_object(path)
    # Four rows of the vocabulary are markers, and there must be a word.
    least = {"vocab_size": 5}
    sizes = {
        name: int(_number(path, loaded, key, least.get(key, 1), 10**9, whole=True)) for name, key in _SIZES.items()
    }
    fixed = _FIXED | {"head_dim": sizes["hidden"] // sizes["heads"]}
    for key, value in fixed.items():
        if loaded.get(key, value) != value:
            raise BadInput.of(f"{key} in {str(path)!r}", loaded[key], f"{value!r}", "use a Bagel checkpoint")
    hidden, heads, kv_heads, vocab = (sizes[name] for name in ("hidden", "heads", "kv_heads", "vocab"))
    if heads % kv_heads or hidden % heads or hidden // heads % 2:
        raise BadInput.of(
            f"hidden_size, num_attention_heads, num_key_value_heads in {str(path)!r}",
            (hidden, heads, kv_heads),
            "attention heads that cut hidden_size into even parts, and key-value heads that divide them",
            "correct the file",
        )
    if sizes["layers"] > len(shapes):
        # Also keeps a wild number from building a model of a billion layers before names are compared.
        raise BadInput.of(
            f"num_hidden_layers in {str(path)!r}",
            sizes["layers"],
            f"at most {len(shapes)}, the tensors that the weights hold",
            "check that file and weights belong together",
        )
    places = shapes.get(POSITIONS) or (_side_told(directory) ** 2, hidden)
    # Where this one is missing, the comparison of names says so, with whatever else is.
    latents = shapes.get(_LATENTS_IN, (hidden, 1))
    if len(places) != 2 or places[0] != math.isqrt(places[0]) ** 2 or not places[0]:
        raise BadInput.of(
            f"shape of checkpoint tensor {POSITIONS}", places, "a square number of rows", "fetch the file again"
        )
    if len(latents) != 2 or not latents[1]:
        raise BadInput.of(
            f"shape of checkpoint tensor {_LATENTS_IN}", latents, f"({hidden}, latent channels)", "fetch the file again"
        )
    markers = _QWEN_MARKERS if vocab > max(_QWEN_MARKERS) else tuple(range(vocab - 4, vocab))
    return BagelConfig(
        **sizes,
        head_dim=hidden // heads,
        latent_channels=latents[1],
        latent_side=math.isqrt(places[0]),
        prompt_tokens=PRESETS[_nearest(hidden)].config.prompt_tokens,
        bos=markers[0],
        eos=markers[1],
        image_start=markers[2],
        image_end=markers[3],
        rope_theta=_rope_theta(path, loaded),
        norm_eps=_number(path, loaded, "rms_norm_eps", 1e-12, 1),
    )


def size_of(config: BagelConfig) -> str:
    """The preset that a geometry is, or that comes nearest to it."""
    return _nearest(config.hidden)


def _nearest(hidden: int) -> str:
    return min(PRESETS, key=lambda name: abs(math.log(PRESETS[name].config.hidden / hidden)))


def _side_told(directory: Path) -> int:
    """Latent positions a side, where no table shows them."""
    path = directory / WHOLE_CONFIG_FILE
    if not path.exists():
        return _SIDE
    loaded = json_object(path)
    return int(_number(path, {_SIDE_KEY: _SIDE} | loaded, _SIDE_KEY, 1, 1024, whole=True))


def _rope_theta(path: Path, loaded: Mapping[str, object]) -> float:
    """The base of the rotary embedding: a key of its own, or one of ``rope_parameters`` as transformers 5 writes it."""
    told = loaded.get("rope_parameters")
    if told is None:
        return _number(path, loaded, "rope_theta", 1, 1e12)
    if not isinstance(told, dict) or told.get("rope_type", "default") != "default":
        raise BadInput.of(
            f"rope_parameters in {str(path)!r}", told, "an object with rope_type 'default'", "use a Bagel checkpoint"
        )
    within = _number(path, told, "rope_theta", 1, 1e12)
    if loaded.get("rope_theta", within) != within:
        expected = f"{within!r}, as in rope_parameters"
        raise BadInput.of(f"rope_theta in {str(path)!r}", loaded["rope_theta"], expected, "correct the file")
    return within


def config_values(config: BagelConfig) -> dict[str, object]:
    """What :func:`read_config` reads back."""
    sizes = {key: getattr(config, name) for name, key in _SIZES.items()}
    return {**sizes, "rope_theta": config.rope_theta, "rms_norm_eps": config.norm_eps, **_FIXED}


def _number(
    path: Path, loaded: Mapping[str, object], key: str, least: float, most: float, whole: bool = False
) -> float:
    value = loaded.get(key)
    kind = int if whole else (int, float)
    if not isinstance(value, kind) or isinstance(value, bool) or not least <= value <= most:
        expected = f"{'an integer' if whole else 'a number'} from {least:g} to {most:g}"
        raise BadInput.of(f"{key} in {str(path)!r}", value, expected, "correct the file")
    return float(value)
