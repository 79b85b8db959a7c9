"""Weights in BAGEL-7B-MoT's own published layout.

A folder with ``llm_config.json`` and ``ema.safetensors`` (or shards that ``*.safetensors.index.json`` lists). Tensors
are memory-mapped and go to their place one at a time. Nothing but safetensors is read: nothing is ever unpickled.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from verify.bagel.config import PRESETS, BagelConfig
from verify.bagel.model import BagelModel
from verify.errors import BadInput

CONFIG_FILE = "llm_config.json"
WEIGHTS_FILE = "ema.safetensors"

# Parts of the published file that this model does not have: the image encoder and the text head.
_NOT_USED = ("vit_model.", "connector.", "vit_pos_embed.", "language_model.lm_head.")

# Qwen2.5's begin, end, image start and image end; a smaller vocabulary keeps its last four rows for them.
_QWEN_MARKERS = (151644, 151645, 151652, 151653)

_CONFIG_KEYS = {
    "hidden": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "mlp": "intermediate_size",
    "vocab": "vocab_size",
}


def published_name(name: str) -> str:
    """The published file's name for one of our parameters."""
    if name == "embed_tokens":
        return "language_model.model.embed_tokens.weight"
    if name == "latent_pos_embed":
        return "latent_pos_embed.pos_embed"
    if match := re.fullmatch(r"norm\.(und|gen)\.weight", name):
        return f"language_model.model.norm{_suffix(match[1])}.weight"
    if match := re.fullmatch(r"layers\.(\d+)\.(und|gen)\.(.+)", name):
        layer, expert, rest = match.groups()
        # Attention's parts carry the expert's suffix one by one; norms and MLP carry it as a whole.
        inner = re.sub(r"^(self_attn\.\w+|\w+)", lambda part: part[0] + _suffix(expert), rest)
        return f"language_model.model.layers.{layer}.{inner}"
    return name


def _suffix(expert: str) -> str:
    return "_moe_gen" if expert == "gen" else ""


def load_model(directory: Path, dtype: torch.dtype, device: torch.device) -> BagelModel:
    """The model of a checkpoint, its weights cast to ``dtype``.

    Raises:
        BadInput: the folder, its configuration or its weights cannot be used.
    """
    directory = _directory(directory)
    with ExitStack() as stack:
        tensors = _Tensors(directory, stack)
        with torch.device("meta"):
            model = BagelModel(_config(directory, tensors)).to(dtype)
        wanted = {published_name(name): parameter.shape for name, parameter in model.named_parameters()}
        tensors.check(wanted)
        model = model.to_empty(device=device).requires_grad_(False).eval()
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors.get(published_name(name)))
    return model


def save_checkpoint(model: BagelModel, directory: Path) -> None:
    """Writes a model in the published layout."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {key: getattr(model.config, name) for name, key in _CONFIG_KEYS.items()}
    config |= {"rope_theta": model.config.rope_theta, "rms_norm_eps": model.config.norm_eps}
    (directory / CONFIG_FILE).write_text(json.dumps(config, indent=1) + "\n")
    tensors = {published_name(name): p.detach().cpu().contiguous() for name, p in model.named_parameters()}
    save_file(tensors, directory / WEIGHTS_FILE)


def _directory(directory: Path) -> Path:
    try:
        found = directory.is_dir()
    except (OSError, RuntimeError):  # A circle of symbolic links.
        found = False
    if not found:
        raise BadInput.of("checkpoint", str(directory), f"a folder with {CONFIG_FILE} and {WEIGHTS_FILE}", "check the path")
    return directory


class _Tensors:
    """The tensors of all files of a checkpoint, opened but not read."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self._directory = directory
        self._open: dict[str, Any] = {}
        for file in _weight_files(directory):
            try:
                opened = stack.enter_context(safe_open(file, framework="pt", device="cpu"))
            except (SafetensorError, OSError) as error:
                raise BadInput.of("checkpoint", str(file), "a whole safetensors file", f"{error}; fetch it again") from None
            self._open |= dict.fromkeys(opened.keys(), opened)

    def names(self) -> Iterable[str]:
        return self._open.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        if name not in self._open:
            self._complain("misses", [name])
        return tuple(self._open[name].get_slice(name).get_shape())

    def check(self, wanted: dict[str, torch.Size]) -> None:
        """Compares names and shapes before any tensor is read."""
        present = {name for name in self.names() if not name.startswith(_NOT_USED)}
        if missing := sorted(wanted.keys() - present):
            self._complain("misses", missing)
        if unexpected := sorted(present - wanted.keys()):
            self._complain("holds unexpected", unexpected)
        for name, shape in wanted.items():
            if self.shape(name) != tuple(shape):
                raise BadInput.of(f"checkpoint tensor {name}", self.shape(name), f"shape {tuple(shape)}", "check the config")

    def get(self, name: str) -> torch.Tensor:
        """Reads one tensor."""
        tensor: torch.Tensor = self._open[name].get_tensor(name)
        if not tensor.is_floating_point():
            raise BadInput.of(f"checkpoint tensor {name}", tensor.dtype, "a floating-point dtype", "convert it first")
        if not tensor.isfinite().all():
            raise BadInput.of(f"checkpoint tensor {name}", "NaN or infinite", "finite weights", "fetch the file again")
        return tensor

    def _complain(self, how: str, names: list[str]) -> None:
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        raise BadInput(
            f"checkpoint {str(self._directory)!r} {how} {len(names)} tensor{'s' * (len(names) != 1)} ({shown}), expected "
            "the names of BAGEL-7B-MoT; check that it is that model"
        )


def _weight_files(directory: Path) -> Iterator[Path]:
    indices = sorted(directory.glob("*.safetensors.index.json"))
    if (directory / WEIGHTS_FILE).exists() or not indices:
        if not (directory / WEIGHTS_FILE).is_file():
            others = sorted(p.name for p in directory.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt"))
            reason = f"{others[0]} is not read, since pickles can run code; convert it" if others else "add the file"
            raise BadInput.of("checkpoint", str(directory), f"a folder that holds {WEIGHTS_FILE}", reason)
        yield directory / WEIGHTS_FILE
        return
    shards = _json_object(indices[0]).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(v, str) for v in shards.values()):
        raise BadInput.of("checkpoint", str(indices[0]), "an index whose weight_map names files", "fetch it again")
    for shard in sorted(set(shards.values())):
        if Path(shard).name != shard or not (directory / shard).is_file():
            raise BadInput.of("checkpoint", str(directory), f"a folder that holds the shard {shard!r}", "fetch the shard")
        yield directory / shard


def _config(directory: Path, tensors: _Tensors) -> BagelConfig:
    """The geometry, from the configuration and, for the latent side, from the shapes of the tensors."""
    path = directory / CONFIG_FILE
    if not path.is_file():
        raise BadInput.of("checkpoint", str(directory), f"a folder that holds {CONFIG_FILE}", "add the file")
    loaded = _json_object(path)
    sizes = {name: _positive(path, loaded, key) for name, key in _CONFIG_KEYS.items()}
    theta = _positive(path, {"rope_theta": 1e6} | loaded, "rope_theta", whole=False)
    eps = _positive(path, {"rms_norm_eps": 1e-6} | loaded, "rms_norm_eps", whole=False)
    hidden, heads, kv_heads, vocab = (int(sizes[name]) for name in ("hidden", "heads", "kv_heads", "vocab"))
    if heads % kv_heads or hidden % heads or hidden // heads % 2:
        raise BadInput.of(
            str(path),
            {key: loaded[key] for key in ("hidden_size", "num_attention_heads", "num_key_value_heads")},
            "heads that divide hidden_size into even parts, and key-value heads that divide heads",
            "correct the file",
        )
    places = tensors.shape("latent_pos_embed.pos_embed")
    channels = tensors.shape("vae2llm.weight")
    side = math.isqrt(places[0]) if places else 0
    if len(channels) != 2 or side * side != (places[0] if places else -1):
        raise BadInput.of("checkpoint tensor latent_pos_embed.pos_embed", places, "a square number of rows", "check the file")
    if vocab < 5:
        raise BadInput.of(f"{path}: vocab_size", vocab, "at least 5: four markers and a word", "correct the file")
    markers = _QWEN_MARKERS if vocab > max(_QWEN_MARKERS) else tuple(range(vocab - 4, vocab))
    nearest = min(PRESETS.values(), key=lambda p: abs(math.log(p.config.hidden / hidden)))
    return BagelConfig(
        **{name: int(value) for name, value in sizes.items()},
        head_dim=hidden // heads,
        latent_channels=channels[1],
        latent_side=side,
        prompt_tokens=nearest.config.prompt_tokens,
        bos=markers[0],
        eos=markers[1],
        image_start=markers[2],
        image_end=markers[3],
        rope_theta=theta,
        norm_eps=eps,
    )


def _json_object(path: Path) -> dict[str, Any]:
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise BadInput.of("checkpoint", str(path), "a JSON object", f"it cannot be read: {error}") from None
    if not isinstance(loaded, dict):
        raise BadInput.of("checkpoint", str(path), "a JSON object", f"it holds a {type(loaded).__name__}")
    return loaded


def _positive(path: Path, loaded: dict[str, Any], key: str, whole: bool = True) -> float:
    value = loaded.get(key)
    kind = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kind) or not 0 < value < 1e9:
        expected = "a positive integer" if whole else "a positive number"
        raise BadInput.of(f"{path}: {key}", value, expected, "correct the file")
    return value
