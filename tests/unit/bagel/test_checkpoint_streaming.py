"""Loading maps the file and moves one tensor at a time, at the speed of memory."""

from __future__ import annotations

import time
import weakref
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from spoilt_checkpoints import EMBEDDING, FIXTURE, Q_PROJ, TINY, WEIGHTS
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from verify.bagel.checkpoint import load_model, save_checkpoint
from verify.bagel.config import PRESETS
from verify.bagel.model import BagelModel
from verify.bagel.published import published_name
from verify.bagel.tensor_files import TensorFiles

CPU = torch.device("cpu")


def mapped(path: Path) -> range:
    """The addresses at which this process has mapped a file; empty if it has not."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(f" {path.resolve()}"):
            first, last = line.split()[0].split("-")
            return range(int(first, 16), int(last, 16))
    return range(0)


class Allocations(TorchDispatchMode):
    """Adds up the bytes of every storage that an operator makes, freed again or not; single elements do not count."""

    def __init__(self, file: Path) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.file = file
        self.mapping = range(0)
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        taken = {self.place(leaf) for leaf in tree_leaves((args, kwargs))}
        for leaf in tree_leaves(out):
            place = self.place(leaf)
            if not place or place in taken or leaf.numel() == 1:
                continue
            self.mapping = self.mapping or mapped(self.file)
            if place not in self.mapping:
                self.bytes += leaf.untyped_storage().nbytes()
        return out

    @staticmethod
    def place(leaf: Any) -> int:
        """Where a tensor's storage lies; 0 if it has none."""
        return leaf.untyped_storage().data_ptr() if isinstance(leaf, Tensor) and leaf.device.type != "meta" else 0


def load_greedily(folder: Path) -> BagelModel:
    """What :func:`load_model` must not do: all tensors at once, then the model."""
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS).items()}
    with torch.device("meta"):
        model = BagelModel(TINY).to(torch.bfloat16)
    model = model.to_empty(device=CPU).requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.copy_(tensors[published_name(name)])
    return model


def test_loading_allocates_the_model_and_less_than_one_tensor_more() -> None:
    with Allocations(FIXTURE / WEIGHTS) as made:
        model = load_model(FIXTURE, torch.bfloat16, CPU)
    assert made.mapping
    sizes = [parameter.nbytes for parameter in model.parameters()]
    assert sum(sizes) <= made.bytes < sum(sizes) + max(sizes)
    # The meter is no rubber stamp.
    with Allocations(FIXTURE / WEIGHTS) as greedy:
        load_greedily(FIXTURE)
    assert greedy.bytes >= 2 * sum(sizes)


def test_tensors_are_views_of_the_mapped_file_and_at_most_one_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    read = TensorFiles.read
    alive, outside, most = [0], [0], [0]

    def freed() -> None:
        alive[0] -= 1

    def counted(self: TensorFiles, name: str) -> Tensor:
        tensor = read(self, name)
        outside[0] += tensor.data_ptr() not in mapped(FIXTURE / WEIGHTS)
        alive[0] += 1
        most[0] = max(most[0], alive[0])
        weakref.finalize(tensor, freed)
        return tensor

    monkeypatch.setattr(TensorFiles, "read", counted)
    load_model(FIXTURE, torch.bfloat16, CPU)
    assert (most, alive, outside) == ([1], [0], [0])
    # The counter is no rubber stamp.
    with ExitStack() as stack:
        files = TensorFiles([FIXTURE / WEIGHTS], stack)
        kept = [files.read(Q_PROJ), files.read(EMBEDDING)]
    assert (most, alive, len(kept)) == ([2], [2], 2)


def test_a_hundred_megabytes_load_in_a_second(tmp_path: Path) -> None:
    """Measured: 0.07 s. By the processor's time, not the clock: the bound is for work on every element."""
    with torch.device("meta"):
        model = BagelModel(PRESETS["small"].config).to(torch.bfloat16)
    model = model.to_empty(device=CPU).requires_grad_(False)
    for parameter in model.parameters():
        parameter.fill_(0.5)
    save_checkpoint(model, tmp_path)
    assert (tmp_path / WEIGHTS).stat().st_size > 100e6
    seconds = []
    for _ in range(3):
        began = time.process_time()
        load_model(tmp_path, torch.bfloat16, CPU)
        seconds.append(time.process_time() - began)
    (tmp_path / WEIGHTS).unlink()
    assert min(seconds) < 1.0
