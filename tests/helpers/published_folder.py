"""A folder with the names, shapes and sizes of BAGEL-7B-MoT's published files; its weights are holes on no disk.

``python tests/helpers/published_folder.py OUT`` writes it.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from verify.bagel.config import PRESETS
from verify.bagel.model import BagelModel
from verify.bagel.published import CONFIG_FILE, WEIGHTS_FILE, config_values, published_name

Shapes = Iterator[tuple[str, tuple[int, ...]]]
# The image encoder of the published model: SigLIP so400m without its last layer, on patches of 14 pixels.
_WIDTH, _INNER, _LAYERS, _PATCHES, _PATCH = 1152, 4304, 26, 70 * 70, 3 * 14 * 14


def write_folder(directory: Path) -> None:
    """Writes configuration and weights: 1,223 tensors, all zero, in a sparse file."""
    directory.mkdir(parents=True, exist_ok=True)
    config = PRESETS["7b"].config
    (directory / CONFIG_FILE).write_text(json.dumps(config_values(config)))
    (directory / "config.json").write_text(json.dumps({"model_type": "bagel", "max_latent_size": config.latent_side}))
    header, end = {}, 0
    for name, shape in [*_denoiser(), *_image_encoder(), *_rest()]:
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (directory / WEIGHTS_FILE).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def _denoiser() -> Shapes:
    with torch.device("meta"):
        model = BagelModel(PRESETS["7b"].config)
    return ((published_name(name), tuple(parameter.shape)) for name, parameter in model.named_parameters())


def _image_encoder() -> Shapes:
    prefix = "vit_model.vision_model"
    yield f"{prefix}.embeddings.position_embedding.weight", (_PATCHES, _WIDTH)
    linear = {"embeddings.patch_embedding": (_WIDTH, _PATCH)}
    norms = ["post_layernorm"]
    for layer in range(_LAYERS):
        within = f"encoder.layers.{layer}"
        norms += [f"{within}.layer_norm1", f"{within}.layer_norm2"]
        linear |= {f"{within}.self_attn.{part}_proj": (_WIDTH, _WIDTH) for part in ("q", "k", "v", "out")}
        linear |= {f"{within}.mlp.fc1": (_INNER, _WIDTH), f"{within}.mlp.fc2": (_WIDTH, _INNER)}
    for name, shape in linear.items():
        yield f"{prefix}.{name}.weight", shape
        yield f"{prefix}.{name}.bias", shape[:1]
    for name in norms:
        yield f"{prefix}.{name}.weight", (_WIDTH,)
        yield f"{prefix}.{name}.bias", (_WIDTH,)


def _rest() -> Shapes:
    c = PRESETS["7b"].config
    yield "connector.fc1.weight", (c.hidden, _WIDTH)
    yield "connector.fc1.bias", (c.hidden,)
    yield "connector.fc2.weight", (c.hidden, c.hidden)
    yield "connector.fc2.bias", (c.hidden,)
    yield "vit_pos_embed.pos_embed", (_PATCHES, c.hidden)
    yield "language_model.lm_head.weight", (c.vocab, c.hidden)


if __name__ == "__main__":
    write_folder(Path(sys.argv[1]))
