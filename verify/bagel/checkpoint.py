"""Weights in BAGEL-7B-MoT's own published layout.

A folder with ``llm_config.json`` and ``ema.safetensors``, or the shards that ``*.safetensors.index.json`` names. Files
are mapped into memory and each tensor is copied to its place on its own, so a 26 GB file needs no 26 GB of host memory.
Nothing but safetensors is read for tensors, and nothing is ever unpickled.

``python -m verify.bagel.checkpoint OUT_DIR`` writes the tiny checkpoint that fixtures/ holds.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from verify.bagel.config import PRESETS, BagelConfig
from verify.bagel.model import BagelModel
from verify.bagel.published import CONFIG_FILE, NOT_USED, WEIGHTS_FILE, config_values, published_name, read_config
from verify.bagel.tensor_files import TensorFiles, folder, json_object, readable, regular_file
from verify.bagel.weights import allocate, build_model
from verify.errors import BadInput

FIXTURE_SEED = 1

# Only for these dtypes is a weight the number that is stored: quantised ones need scales that this model does not read.
_DTYPES = ("BF16", "F16", "F32", "F64")


@dataclass(frozen=True)
class Survey:
    """What a checkpoint holds, from its configuration and the headers of its files.

    Attributes:
        config: the model's geometry.
        used: tensors that the model takes.
        ignored: tensors of the parts that the model does not have: image encoder, connector, text head.
    """

    config: BagelConfig
    used: int
    ignored: int


def survey(directory: Path) -> Survey:
    """Checks everything about a checkpoint that can be checked without reading a weight.

    Raises:
        BadInput: the folder, its configuration or its files cannot be used.
    """
    with ExitStack() as stack:
        return _survey(directory, TensorFiles(_weight_files(directory), stack))[0]


def config_of(directory: Path) -> BagelConfig:
    """The geometry of a checkpoint. Raises ``BadInput`` as :func:`survey` does."""
    return survey(directory).config


def load_model(directory: Path, dtype: torch.dtype, device: torch.device) -> BagelModel:
    """The model of a checkpoint, its weights cast to ``dtype`` and made where they stay, on ``device``.

    Raises:
        BadInput: the folder, its configuration or its files cannot be used, or a weight is not finite.
    """
    with ExitStack() as stack:
        tensors = TensorFiles(_weight_files(directory), stack)
        _, model = _survey(directory, tensors)
        model = allocate(model.to(dtype), device)
        for name, parameter in model.named_parameters():
            published = published_name(name)
            parameter.copy_(tensors.read(published))
            # Judged where it lies, after the cast: one pass without a temporary, and fast on a GPU.
            if not _is_finite(parameter):
                _refuse_values(published, tensors.read(published), dtype)
    return model


def checkpoint_tensors(directory: Path) -> Iterator[tuple[str, Tensor]]:
    """Published name and value, as stored, of each tensor that the model takes: for a model that is built elsewhere.

    Raises:
        BadInput: the folder, its configuration or its files cannot be used.
    """
    with ExitStack() as stack:
        tensors = TensorFiles(_weight_files(directory), stack)
        _, model = _survey(directory, tensors)
        for name, _ in model.named_parameters():
            yield published_name(name), tensors.read(published_name(name))


def _is_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite. ``aminmax`` passes NaN on, and needs a fiftieth of ``isfinite``'s time."""
    return all(math.isfinite(extreme.item()) for extreme in tensor.aminmax())


def _refuse_values(name: str, source: Tensor, dtype: torch.dtype) -> None:
    index = tuple((~source.to(dtype).isfinite()).nonzero()[0].tolist())
    at = f"at index {index}"
    if source[index].isfinite():
        raise BadInput.of(
            f"checkpoint tensor {name}",
            f"{source[index].item():g} {at}",
            f"weights within the range of {str(dtype).removeprefix('torch.')}",
            "choose a wider --dtype",
        )
    raise BadInput.of(
        f"checkpoint tensor {name}", f"{source[index].item()} {at}", "finite weights", "fetch the file again"
    )


def _survey(directory: Path, tensors: TensorFiles) -> tuple[Survey, BagelModel]:
    """The survey, and the model without storage."""
    config = read_config(directory, tensors.shapes)
    with torch.device("meta"):
        model = BagelModel(config)
    wanted = {published_name(name): tuple(parameter.shape) for name, parameter in model.named_parameters()}
    known = {name for name in tensors.shapes if not name.startswith(NOT_USED)}
    _compare_names(directory, wanted, known)
    quantised = [name for name in wanted if tensors.dtypes[name] not in _DTYPES]
    if quantised:
        _refuse_tensors("dtype", tensors.dtypes, quantised, f"one of {', '.join(_DTYPES)}", "convert the weights")
    reshaped = [name for name in wanted if tensors.shapes[name] != wanted[name]]
    if reshaped:
        expected = f"{wanted[reshaped[0]]} by {CONFIG_FILE}"
        _refuse_tensors("shape", tensors.shapes, reshaped, expected, "check that file and weights belong together")
    return Survey(config, len(wanted), len(tensors.shapes) - len(known)), model


def _compare_names(directory: Path, wanted: Mapping[str, object], known: set[str]) -> None:
    missing, unexpected = sorted(wanted.keys() - known), sorted(known - wanted.keys())
    found = [_listed(*said) for said in (("lacks", "", missing), ("holds", "unexpected ", unexpected)) if said[-1]]
    if found:
        raise BadInput(
            f"checkpoint {str(directory)!r} {' and '.join(found)}, expected the {len(wanted)} tensors of a "
            f"BAGEL-7B-MoT with the layers that {CONFIG_FILE} names and no others; check that it is that model"
        )


def _listed(verb: str, kind: str, names: Sequence[str]) -> str:
    shown = ", ".join(readable(name) for name in names[:3])
    return f"{verb} {len(names)} {kind}tensor{'s' * (len(names) > 1)} ({shown}{', ...' * (len(names) > 3)})"


def _refuse_tensors(what: str, held: Mapping[str, object], names: Sequence[str], expected: str, fix: str) -> None:
    others = f" (and {len(names) - 1} more tensors are wrong)" if len(names) > 1 else ""
    raise BadInput.of(f"{what} of checkpoint tensor {names[0]}", held[names[0]], expected + others, fix)


def _weight_files(directory: Path) -> list[Path]:
    """``ema.safetensors`` if it is there, else the shards of the only index."""
    names = folder(directory, f"a folder with {CONFIG_FILE} and {WEIGHTS_FILE}")
    indices = [name for name in names if name.endswith(".safetensors.index.json")]
    if WEIGHTS_FILE in names:
        return [regular_file(directory / WEIGHTS_FILE)]
    if f"{WEIGHTS_FILE}.index.json" in indices:
        indices = [f"{WEIGHTS_FILE}.index.json"]
    if len(indices) == 1:
        return _shards(directory / indices[0])
    pickles = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt", ".pkl"))]
    if indices:
        fix = f"it holds {len(indices)} indices; keep one"
    elif pickles:
        fix = f"{readable(pickles[0])} is not read, because unpickling can run code; convert it to safetensors"
    else:
        fix = "it holds neither; add them"
    raise BadInput.of("checkpoint", str(directory), f"a folder with {WEIGHTS_FILE} or one index of shards", fix)


def _shards(index: Path) -> list[Path]:
    places = json_object(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(file, str) for file in places.values()):
        raise BadInput.of("checkpoint index", str(index), "a weight_map from tensor to file names", "fetch it again")
    shards = sorted(set(places.values()))
    for shard in shards:
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise BadInput.of(
                f"a shard of checkpoint index {str(index)!r}",
                shard,
                "a .safetensors file in the same folder, because nothing else is read",
                "convert the weights",
            )
    return [regular_file(index.parent / shard) for shard in shards]


def save_checkpoint(model: BagelModel, directory: Path) -> None:
    """Writes a model in the published layout, each file whole or not at all. The same model gives the same bytes.

    Raises:
        BadInput: ``directory`` cannot be written to.
    """
    tensors = {published_name(name): parameter.detach().cpu() for name, parameter in model.named_parameters()}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".partial-", dir=directory) as partial:
            (Path(partial) / CONFIG_FILE).write_text(
                json.dumps(config_values(model.config), indent=1) + "\n", encoding="utf-8"
            )
            # Readers of the published file want to be told which framework wrote it.
            save_file(tensors, Path(partial) / WEIGHTS_FILE, {"format": "pt"})
            for name in (WEIGHTS_FILE, CONFIG_FILE):
                (Path(partial) / name).chmod(0o644)
                os.replace(Path(partial) / name, directory / name)
    except (OSError, ValueError, SafetensorError) as error:
        raise BadInput.of("the output folder", str(directory), "a place that can be written", str(error)) from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the tiny checkpoint: the ``tiny`` preset in bf16, its weights seeded."""
    parser = argparse.ArgumentParser("python -m verify.bagel.checkpoint", description=main.__doc__)
    parser.add_argument("directory", type=Path, metavar="OUT_DIR", help="where the two files are written")
    directory = parser.parse_args(arguments).directory
    try:
        model = build_model(PRESETS["tiny"].config, torch.bfloat16, torch.device("cpu"), FIXTURE_SEED)
        save_checkpoint(model, directory)
    except BadInput as error:
        print(error, file=sys.stderr)
        return 2
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        print(f"{directory / name}: {(directory / name).stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
