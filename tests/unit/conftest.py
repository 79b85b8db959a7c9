"""What all unit tests share."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from spoilt_checkpoints import FIXTURE, TINY

from verify.bagel.model import BagelModel
from verify.bagel.weights import build_model


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Models this small gain nothing from threads, and threads that outnumber free cores spin: 1 s becomes 29 s."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def no_grad() -> Iterator[None]:
    """No operator is recorded."""
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def built() -> BagelModel:
    """What the tiny checkpoint was made from."""
    return build_model(TINY, torch.bfloat16, torch.device("cpu"), seed=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint to spoil."""
    return Path(shutil.copytree(FIXTURE, tmp_path / "checkpoint"))
