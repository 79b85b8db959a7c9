"""Which code a process runs: sources by bytes, distributions by version, libraries by size."""

from __future__ import annotations

import importlib.util
import os
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

from verify.environment.identity import identity

assert torch


def loaded(path: Path, name: str) -> None:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


def test_verify_and_what_it_stands_on() -> None:
    found = identity()
    assert len(found.sources["verify.environment.identity"]) == 16
    assert found.distributions["torch"] == metadata.version("torch")
    assert found.distributions["numpy"] == metadata.version("numpy")
    assert not any(name.startswith(("torch", "numpy")) for name in found.sources)
    assert any(name.startswith("libtorch") for name in found.libraries)
    assert all(value.endswith(" bytes") for value in found.libraries.values())


def test_a_loops_file_and_its_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_loop_file_1", "neighbour"):
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "my_loop.py").write_text("A = 1\n")
    (tmp_path / "neighbour.py").write_text("B = 1\n")
    loaded(tmp_path / "my_loop.py", "_loop_file_1")
    loaded(tmp_path / "neighbour.py", "neighbour")
    before = identity().sources
    assert {"my_loop.py", "neighbour"} <= before.keys()
    (tmp_path / "my_loop.py").write_text("A = 2\n")
    os.utime(tmp_path / "my_loop.py", ns=(1, 1))
    after = identity().sources
    assert after["my_loop.py"] != before["my_loop.py"]
    assert after["neighbour"] == before["neighbour"]


def test_an_installed_package_that_is_under_test_is_told_by_its_bytes() -> None:
    assert "numpy" not in identity().sources
    assert len(identity(["numpy.linalg"]).sources["numpy"]) == 16


def test_a_source_that_is_gone_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gone", None)
    (tmp_path / "gone.py").write_text("")
    loaded(tmp_path / "gone.py", "gone")
    (tmp_path / "gone.py").unlink()
    assert "gone" not in identity().sources
