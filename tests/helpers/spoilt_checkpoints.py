"""Ways to spoil a checkpoint, and what must then be said."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from verify.bagel.config import PRESETS
from verify.bagel.model import BagelModel
from verify.bagel.published import config_values

FIXTURE = Path(__file__).parents[2] / "fixtures" / "tiny_checkpoint"
TINY = PRESETS["tiny"].config
CONFIG, WEIGHTS, INDEX = "llm_config.json", "ema.safetensors", "ema.safetensors.index.json"
Q_PROJ = "language_model.model.layers.0.self_attn.q_proj.weight"
EMBEDDING = "language_model.model.embed_tokens.weight"
POSITIONS = "latent_pos_embed.pos_embed"

Spoil = Callable[[Path], Path | None]


def parameters(model: BagelModel) -> dict[str, Tensor]:
    """All weights by their names."""
    return dict(model.named_parameters())


def shard(folder: Path, index_name: str = INDEX) -> dict[str, str]:
    """Splits the weights into three shards and an index of them, as the ``transformers`` library does."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    places = {name: f"model-{i % 3 + 1:05}-of-00003.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in sorted(set(places.values())):
        save_file({name: tensors[name] for name in tensors if places[name] == file}, folder / file)
    (folder / index_name).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return places


def configured(**changes: Any) -> Spoil:
    """Changes keys of the configuration; ``...`` removes one."""

    def spoil(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text()) | changes
        (folder / CONFIG).write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))

    return spoil


def tensors_changed(change: Callable[[dict[str, Tensor]], object]) -> Spoil:
    """Edits the tensors in place."""

    def spoil(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        # Not in place: the loaded tensors are views of the file that is mapped.
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / "new")
        os.replace(folder / "new", folder / WEIGHTS)

    return spoil


def with_tensor(name: str, change: Callable[[Tensor], Tensor]) -> Spoil:
    return tensors_changed(lambda tensors: tensors.update({name: change(tensors[name])}))


def element(name: str, index: tuple[int, ...], value: float) -> Spoil:
    def change(tensor: Tensor) -> Tensor:
        changed = tensor.clone()
        changed[index] = value
        return changed

    return with_tensor(name, change)


def written(file: str, content: str | bytes) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / file).write_bytes(content.encode() if isinstance(content, str) else content)

    return spoil


def cut(keep: int) -> Spoil:
    def spoil(folder: Path) -> None:
        os.truncate(folder / WEIGHTS, keep)

    return spoil


def indexed(content: object) -> Spoil:
    def spoil(folder: Path) -> None:
        shard(folder)
        (folder / INDEX).write_text(content if isinstance(content, str) else json.dumps(content))

    return spoil


def linked_to_itself(file: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / file).unlink()
        (folder / file).symlink_to(folder / file)

    return spoil


def piped(file: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / file).unlink()
        os.mkfifo(folder / file)

    return spoil


def removed(*files: str) -> Spoil:
    def spoil(folder: Path) -> None:
        for file in files:
            (folder / file).unlink()

    return spoil


def loop_of_links(folder: Path) -> Path:
    (folder / "a").symlink_to(folder / "b")
    (folder / "b").symlink_to(folder / "a")
    return folder / "a"


def shard_missing(folder: Path) -> None:
    shard(folder)
    (folder / "model-00002-of-00003.safetensors").unlink()


def shard_truncated(folder: Path) -> None:
    shard(folder)
    os.truncate(folder / "model-00003-of-00003.safetensors", 5000)


def shards_overlap(folder: Path) -> None:
    shard(folder)
    shutil.copy(folder / "model-00001-of-00003.safetensors", folder / "model-00002-of-00003.safetensors")


def only_pickle(name: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        torch.save({"x": torch.zeros(2)}, folder / name)

    return spoil


def also_as(name: str) -> Spoil:
    """The same weights once more, under another name."""

    def spoil(folder: Path) -> None:
        shutil.copy(folder / WEIGHTS, folder / name)

    return spoil


def two_indices(folder: Path) -> None:
    shard(folder, "a.safetensors.index.json")
    shutil.copy(folder / "a.safetensors.index.json", folder / "b.safetensors.index.json")


HEADER = json.dumps({"x": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 4]}}).encode()

# What is spoilt, how, and what the message must say.
BAD: list[tuple[str, Spoil, tuple[str, ...]]] = [
    ("no such folder", lambda f: f / "absent", ("absent", "No such file", "a folder with llm_config.json")),
    ("a file", lambda f: f / WEIGHTS, ("Not a directory",)),
    ("a circle of links", loop_of_links, ("symbolic links",)),
    ("a name too long", lambda f: f / ("x" * 300), ("too long",)),
    ("a null in the name", lambda f: f / "a\0b", ("null",)),
    ("an empty folder", removed(CONFIG, WEIGHTS), ("it holds neither",)),
    ("no configuration", removed(CONFIG), (CONFIG, "No such file")),
    ("configuration links to itself", linked_to_itself(CONFIG), (CONFIG, "symbolic links")),
    ("configuration is a pipe", piped(CONFIG), (CONFIG, "regular file")),
    ("configuration is empty", written(CONFIG, ""), (CONFIG, "a JSON object")),
    ("configuration is no JSON", written(CONFIG, "{hidden_size: 64}"), (CONFIG, "a JSON object")),
    ("configuration is no text", written(CONFIG, b"\xff\xfe\x00{"), (CONFIG, "a JSON object")),
    ("configuration is a list", written(CONFIG, "[1]"), ("it holds a list",)),
    ("configuration nests for ever", written(CONFIG, "[" * 100_000), (CONFIG, "a JSON object")),
    ("configuration is huge", written(CONFIG, " " * (1 << 24) + "{}"), ("more than 16 MiB",)),
    ("configuration has a huge number", written(CONFIG, '{"a": ' + "9" * 5000 + "}"), (CONFIG, "a JSON object")),
    *(
        (f"{key} is missing", configured(**{key: ...}), (key, "is None", "from"))
        for key in config_values(TINY)
        if key not in ("hidden_act", "rope_scaling", "use_sliding_window")
    ),
    ("hidden_size is text", configured(hidden_size="64"), ("hidden_size", "'64'", "an integer")),
    ("hidden_size is a fraction", configured(hidden_size=64.0), ("hidden_size", "64.0", "an integer")),
    ("hidden_size is true", configured(hidden_size=True), ("hidden_size", "True", "an integer")),
    ("hidden_size is a list", configured(hidden_size=[64]), ("hidden_size", "an integer")),
    ("rope_theta is NaN", configured(rope_theta=float("nan")), ("rope_theta", "nan")),
    ("rope_theta is infinite", configured(rope_theta=float("inf")), ("rope_theta", "inf")),
    ("rms_norm_eps is 0", configured(rms_norm_eps=0), ("rms_norm_eps", "is 0")),
    ("no layers", configured(num_hidden_layers=0), ("num_hidden_layers", "is 0")),
    ("minus one layer", configured(num_hidden_layers=-1), ("num_hidden_layers", "is -1")),
    ("a billion layers", configured(num_hidden_layers=10**9), ("num_hidden_layers", "at most 68")),
    ("one layer fewer", configured(num_hidden_layers=1), ("holds 28 unexpected tensors", "layers.1.", ", ...")),
    ("one layer more", configured(num_hidden_layers=3), ("lacks 28 tensors", "layers.2.", ", ...")),
    ("heads that do not divide", configured(num_attention_heads=5), ("(64, 5, 2)",)),
    ("key-value heads that do not divide", configured(num_key_value_heads=3), ("(64, 4, 3)",)),
    ("odd heads", configured(num_attention_heads=64), ("(64, 64, 2)", "even parts")),
    ("a vocabulary of markers only", configured(vocab_size=4), ("vocab_size", "from 5")),
    ("another activation", configured(hidden_act="gelu"), ("hidden_act", "'gelu'", "'silu'")),
    ("scaled positions", configured(rope_scaling={"type": "yarn"}), ("rope_scaling", "yarn", "None")),
    ("other heads", configured(head_dim=32), ("head_dim", "32", "16")),
    ("scaled rope parameters", configured(rope_parameters={"rope_type": "yarn", "rope_theta": 1e6}), ("yarn",)),
    ("rope parameters without a base", configured(rope_parameters={}), ("rope_theta", "None")),
    ("two bases", configured(rope_parameters={"rope_theta": 1e4}), ("rope_theta", "1000000.0", "10000.0")),
    ("a sliding window", configured(use_sliding_window=True), ("use_sliding_window",)),
    ("another width", configured(hidden_size=128), ("shape of checkpoint tensor", "(256, 128) by llm_config.json")),
    ("another vocabulary", configured(vocab_size=300), (EMBEDDING, "(256, 64)", "(300, 64)")),
    ("no weights", removed(WEIGHTS), ("it holds neither", WEIGHTS)),
    ("weights link to themselves", linked_to_itself(WEIGHTS), (WEIGHTS, "symbolic links")),
    ("weights are a pipe", piped(WEIGHTS), (WEIGHTS, "regular file")),
    ("weights are empty", cut(0), (WEIGHTS, "a whole safetensors file")),
    ("weights end in the header", cut(100), (WEIGHTS, "a whole safetensors file")),
    ("weights end in the data", cut(300_000), (WEIGHTS, "not fully covered")),
    ("weights lack the last byte", cut(416_415), (WEIGHTS, "not fully covered")),
    ("header is garbage", written(WEIGHTS, b"\x0f" + b"\0" * 7 + b"not json at all"), ("invalid JSON in header",)),
    ("header is endless", written(WEIGHTS, b"\xff" * 64), ("header too large",)),
    ("header contradicts itself", written(WEIGHTS, len(HEADER).to_bytes(8, "little") + HEADER + b"\0" * 4), ("shape",)),
    ("a page of HTML", written(WEIGHTS, "<!doctype html><p>Not found</p>" * 9), ("a whole safetensors file",)),
    ("weights hold nothing", tensors_changed(dict.clear), ("num_hidden_layers", "at most 0")),
    ("a tensor is missing", tensors_changed(lambda t: t.pop(Q_PROJ)), ("lacks 1 tensor (", Q_PROJ)),
    ("a tensor too many", tensors_changed(lambda t: t.update({"lora.a": t[Q_PROJ]})), ("unexpected", "lora.a")),
    (
        "a tensor under another name",
        tensors_changed(lambda t: t.update({"model.embed": t.pop(EMBEDDING)})),
        ("lacks 1 tensor", EMBEDDING, "holds 1 unexpected tensor", "model.embed"),
    ),
    (
        "a name that would garble the terminal",
        tensors_changed(lambda t: t.update({"\x1b[2J\nx" + "y" * 500: t[Q_PROJ]})),
        (r"\x1b[2J\nx", "..."),
    ),
    (
        "a tensor transposed",
        with_tensor("llm2vae.weight", lambda t: t.t().contiguous()),
        ("llm2vae.weight", "(64, 16)", "(16, 64)"),
    ),
    ("a tensor flat", with_tensor(Q_PROJ, Tensor.flatten), (Q_PROJ, "(4096,)")),
    ("positions not square", with_tensor(POSITIONS, lambda t: t[:250]), (POSITIONS, "(250, 64)", "a square number")),
    ("positions flat", with_tensor(POSITIONS, Tensor.flatten), (POSITIONS, "a square number")),
    ("positions empty", with_tensor(POSITIONS, lambda t: t[:0]), (POSITIONS, "(0, 64)")),
    ("latent channels flat", with_tensor("vae2llm.weight", Tensor.flatten), ("vae2llm.weight", "latent channels")),
    ("integers", with_tensor(Q_PROJ, lambda t: t.to(torch.int32)), (Q_PROJ, "'I32'", "BF16, F16, F32, F64")),
    ("bytes", with_tensor(Q_PROJ, lambda t: t.to(torch.uint8)), (Q_PROJ, "'U8'")),
    ("eight-bit floats", with_tensor(Q_PROJ, lambda t: t.to(torch.float8_e4m3fn)), (Q_PROJ, "'F8_E4M3'")),
    ("complex", with_tensor(Q_PROJ, lambda t: t.to(torch.complex64)), (Q_PROJ, "'C64'")),
    ("all eight-bit", tensors_changed(lambda t: t.update({k: v.byte() for k, v in t.items()})), ("67 more",)),
    ("a pickle only", only_pickle("pytorch_model.bin"), ("pytorch_model.bin is not read", "run code")),
    ("a .pt pickle only", only_pickle("ema.pt"), ("ema.pt is not read", "run code")),
    ("a pickle called safetensors", only_pickle(WEIGHTS), (WEIGHTS, "a whole safetensors file")),
    ("two indices", two_indices, ("a.safetensors.index.json and b.safetensors.index.json", "--weights")),
    ("ema and model", also_as("model.safetensors"), ("ema.safetensors and model.safetensors", "--weights")),
    (
        "ema, and an index of others",
        written("model.safetensors.index.json", json.dumps({"weight_map": {"a": "gone.safetensors"}})),
        ("ema.safetensors and model.safetensors.index.json", "--weights"),
    ),
    ("index is no JSON", indexed("{"), (INDEX, "a JSON object")),
    ("index without a map", indexed({"metadata": {}}), (INDEX, "a weight_map")),
    ("index with an empty map", indexed({"weight_map": {}}), (INDEX, "a weight_map")),
    ("index with a map of numbers", indexed({"weight_map": {"a": 1}}), (INDEX, "a weight_map")),
    ("index that is a list", indexed([]), (INDEX, "it holds a list")),
    (
        "index that leaves the folder",
        indexed({"weight_map": {"a": "../x.safetensors"}}),
        ("../x", "in the same folder"),
    ),
    ("index of pickles", indexed({"weight_map": {"a": "x.bin"}}), ("'x.bin'", "nothing else is read")),
    ("index names a missing shard", shard_missing, ("model-00002-of-00003.safetensors", "No such file")),
    ("a shard cut short", shard_truncated, ("model-00003-of-00003.safetensors", "a whole safetensors file")),
    ("two shards hold one name", shards_overlap, ("one file that holds it", "model-00002")),
]

# Found only when weights are read.
BAD_VALUES: list[tuple[str, Spoil, tuple[str, ...]]] = [
    ("a NaN", element(Q_PROJ, (63, 5), float("nan")), (Q_PROJ, "nan", "(63, 5)", "finite weights")),
    ("an infinity", element(POSITIONS, (0, 0), float("inf")), (POSITIONS, "inf", "(0, 0)", "finite weights")),
    ("a negative infinity", element("llm2vae.bias", (15,), -float("inf")), ("llm2vae.bias", "-inf", "(15,)")),
    (
        "too large for the dtype",
        tensors_changed(lambda t: t.update({"vae2llm.bias": torch.full((64,), 1e39, dtype=torch.float64)})),
        ("vae2llm.bias", "1e+39", "within the range of bfloat16", "--dtype"),
    ),
]
