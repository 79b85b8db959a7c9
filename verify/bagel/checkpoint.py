"""Weights in BAGEL-7B-MoT's own published layout.

A folder with ``llm_config.json`` and ``ema.safetensors``, ``model.safetensors`` or the shards that a
``*.safetensors.index.json`` names. Files are mapped read-only and each tensor is copied to its place on its own, so a
file of 29 GB needs no 29 GB of host memory. Nothing but safetensors is read for tensors, and nothing is ever unpickled.

``python -m verify.bagel.checkpoint OUT_DIR`` writes the tiny checkpoint that fixtures/ holds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from verify.bagel.config import PRESETS, BagelConfig
from verify.bagel.model import BagelModel, sincos_2d
from verify.bagel.published import (
    CONFIG_FILE,
    NOT_USED,
    OTHER_WEIGHTS_FILE,
    POSITIONS,
    WEIGHTS_FILE,
    config_values,
    published_name,
    read_config,
)
from verify.bagel.tensor_files import DTYPES, TensorFiles, folder, json_object, readable, regular_file
from verify.bagel.weights import allocate, build_model
from verify.errors import BadInput

FIXTURE_SEED = 1
_FILE, _INDEX = ".safetensors", ".safetensors.index.json"


@dataclass(frozen=True)
class Survey:
    """What a checkpoint holds, from its configuration and the headers of its files.

    Attributes:
        config: the model's geometry.
        files: the names of the files with its weights.
        used: tensors that the model takes.
        ignored: tensors of the parts that the model does not have: image encoder, connector, text head.
    """

    config: BagelConfig
    files: tuple[str, ...]
    used: int
    ignored: int


def survey(directory: Path, weights: str | None = None) -> Survey:
    """Checks everything about a checkpoint that can be checked without reading a weight.

    Args:
        directory: the checkpoint.
        weights: the file of weights, or index of such files, where the folder holds several.

    Raises:
        BadInput: the folder, its configuration or its files cannot be used.
    """
    with ExitStack() as stack:
        files = _weight_files(directory, weights)
        return _survey(directory, files, TensorFiles(files, stack))[0]


def config_of(directory: Path, weights: str | None = None) -> BagelConfig:
    """The geometry of a checkpoint. Raises ``BadInput`` as :func:`survey` does."""
    return survey(directory, weights).config


def weights_digest(directory: Path, weights: str | None = None) -> str:
    """SHA-256 over name, dtype, shape and SHA-256 of each tensor that the model takes, in the order of their names.

    Raises:
        BadInput: the folder, its configuration or its files cannot be used.
    """
    with ExitStack() as stack:
        files = _weight_files(directory, weights)
        tensors = TensorFiles(files, stack)
        _, model = _survey(directory, files, tensors)
        names = sorted({published_name(name) for name, _ in model.named_parameters()} & tensors.shapes.keys())
        threads = stack.enter_context(ThreadPoolExecutor())  # Hashing lets other threads run.
        of_each = threads.map(lambda name: hashlib.sha256(tensors.bytes_of(name)).hexdigest(), names)
        told = [[name, tensors.dtypes[name], tensors.shapes[name], of] for name, of in zip(names, of_each, strict=True)]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def weights_told(directory: Path, weights: str | None = None) -> str:
    """Folder, files and digest of a checkpoint, in one line."""
    files = ", ".join(readable(name) for name in survey(directory, weights).files)
    digest = weights_digest(directory, weights)
    return f"weights: {readable(str(directory.resolve()))}, {files}; SHA-256 of the tensors used {digest}"


def load_model(directory: Path, dtype: torch.dtype, device: torch.device, weights: str | None = None) -> BagelModel:
    """The model of a checkpoint, its weights cast to ``dtype`` and made where they stay, on ``device``.

    Raises:
        BadInput: the folder, its configuration or its files cannot be used, or a weight is not finite.
    """
    with ExitStack() as stack:
        files = _weight_files(directory, weights)
        tensors = TensorFiles(files, stack)
        _, model = _survey(directory, files, tensors)
        model = allocate(model.to(dtype), device)
        for name, parameter in model.named_parameters():
            published = published_name(name)
            parameter.copy_(_read(tensors, published, model.config))
            # Judged where it lies, after the cast: one pass without a temporary, and fast on a GPU.
            if not _is_finite(parameter):
                _refuse_values(published, _read(tensors, published, model.config), dtype)
    return model


def checkpoint_tensors(directory: Path, weights: str | None = None) -> Iterator[tuple[str, Tensor]]:
    """Published name and value, as stored, of each tensor that the model takes: for a model that is built elsewhere.

    Raises:
        BadInput: the folder, its configuration or its files cannot be used.
    """
    with ExitStack() as stack:
        files = _weight_files(directory, weights)
        tensors = TensorFiles(files, stack)
        _, model = _survey(directory, files, tensors)
        for name, _ in model.named_parameters():
            yield published_name(name), _read(tensors, published_name(name), model.config)


def _read(tensors: TensorFiles, name: str, config: BagelConfig) -> Tensor:
    """One tensor; the position table by its formula where the checkpoint leaves it out."""
    if name == POSITIONS and name not in tensors.shapes:
        return sincos_2d(config.latent_side, config.hidden)
    return tensors.read(name)


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


def _survey(directory: Path, files: Sequence[Path], tensors: TensorFiles) -> tuple[Survey, BagelModel]:
    """The survey, and the model without storage."""
    config = read_config(directory, tensors.shapes)
    with torch.device("meta"):
        model = BagelModel(config)
    wanted = {published_name(name): tuple(parameter.shape) for name, parameter in model.named_parameters()}
    known = {name for name in tensors.shapes if not name.startswith(NOT_USED)}
    if POSITIONS not in known:
        del wanted[POSITIONS]
    _compare_names(directory, wanted, known)
    quantised = [name for name in wanted if tensors.dtypes[name] not in DTYPES]
    if quantised:
        _refuse_tensors("dtype", tensors.dtypes, quantised, f"one of {', '.join(DTYPES)}", "convert the weights")
    reshaped = [name for name in wanted if tensors.shapes[name] != wanted[name]]
    if reshaped:
        expected = f"{wanted[reshaped[0]]} by {CONFIG_FILE}"
        _refuse_tensors("shape", tensors.shapes, reshaped, expected, "check that file and weights belong together")
    return Survey(config, tuple(path.name for path in files), len(wanted), len(tensors.shapes) - len(known)), model


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


def _weight_files(directory: Path, named: str | None) -> list[Path]:
    """The only weights that a folder holds, or those named: a file, or the shards of an index."""
    names = folder(directory, f"a folder with {CONFIG_FILE} and {WEIGHTS_FILE}")
    if named is not None:
        if named not in names or not named.endswith((_FILE, _INDEX)):
            listed = ", ".join(readable(name) for name in names if name.endswith((_FILE, _INDEX))) or "no such file"
            raise BadInput.of("--weights", named, f"weights that {str(directory)!r} holds", f"it holds {listed}")
        return _files_of(directory / named)
    whole = [name for name in (WEIGHTS_FILE, OTHER_WEIGHTS_FILE) if name in names]
    # An index that lists a file of weights that lies beside it tells of the same weights.
    indices = [name for name in names if name.endswith(_INDEX)]
    found = whole + [index for index in indices if not whole or not {*whole} & {*_listed_in(directory / index)}]
    if len(found) == 1:
        return _files_of(directory / found[0])
    pickles = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt", ".pkl"))]
    if found:
        fix = f"it holds {' and '.join(readable(name) for name in found)}; name one with --weights"
    elif pickles:
        fix = f"{readable(pickles[0])} is not read, because unpickling can run code; convert it to safetensors"
    else:
        fix = "it holds neither; add them"
    raise BadInput.of("checkpoint", str(directory), f"a folder with {WEIGHTS_FILE} or an index of shards", fix)


def _files_of(path: Path) -> list[Path]:
    """A file of weights, or the shards of an index."""
    shards = _listed_in(path) if path.name.endswith(_INDEX) else [path.name]
    return [regular_file(path.parent / shard) for shard in shards]


def _listed_in(index: Path) -> list[str]:
    """The files that an index names."""
    places = json_object(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(file, str) for file in places.values()):
        raise BadInput.of("checkpoint index", str(index), "a weight_map from tensor to file names", "fetch it again")
    shards = sorted(set(places.values()))
    for shard in shards:
        if Path(shard).name != shard or not shard.endswith(_FILE):
            raise BadInput.of(
                f"a shard of checkpoint index {str(index)!r}",
                shard,
                "a .safetensors file in the same folder, because nothing else is read",
                "convert the weights",
            )
    return shards


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
