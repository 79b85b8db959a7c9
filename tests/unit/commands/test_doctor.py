"""What ``verify doctor`` says of machines, this one and made-up ones."""

from __future__ import annotations

import importlib
import io
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from msgspec.structs import replace
from rich.console import Console

from verify.bagel.config import PRESETS
from verify.commands import machine
from verify.commands.cli import main
from verify.commands.machine import GIB, MOST_RANKS, available_memory, folder, inspect_machine, preset_fits
from verify.environment.variables import bit_variables
from verify.report.console import print_presentation
from verify.report.documents.machine import Doctor, Folder, Gpu, Package
from verify.report.documents.parts import SCHEMA
from verify.report.sections.present import present

SNAPSHOT = Path(__file__).with_name("snapshots") / "doctor.txt"

TWO_GPUS = Doctor(
    schema=SCHEMA,
    command="verify doctor",
    made=None,
    environment=(),
    notes=(),
    python="3.12.3",
    system="Linux 6.1 x86_64",
    torch="2.11.0",
    cuda="13.0",
    nccl="2.28.9",
    backends=("gloo", "nccl"),
    cores=16,
    memory=120 * GIB,
    gpus=tuple(Gpu(index=i, name="NVIDIA [H100]", capability="9.0", memory=80 * GIB, free=79 * GIB) for i in (0, 1)),
    gpu_trouble=None,
    presets=tuple(preset_fits(name, 120 * GIB, [79 * GIB] * 2) for name in PRESETS),
    packages=(
        Package(name="numpy", version="2.4.6", needed_for="everything"),
        Package(name="msgspec", version=None, needed_for="JSON documents"),
    ),
    engines={"vllm": True, "vllm_omni": False},
    variables={"NCCL_ALGO": "Ring"},
    folders={
        "shared memory": Folder(path="/dev/shm", writable=True, free=64 * GIB),
        "temporary files": Folder(path="/tmp", writable=False, free=1 << 20),
        "GPU leases": None,
    },
)


def printed(found: Doctor) -> str:
    file = io.StringIO()
    print_presentation(present(found), Console(file=file, width=80, force_terminal=False, _environ={}))
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def test_whole_text() -> None:
    assert printed(TWO_GPUS) == SNAPSHOT.read_text(encoding="utf-8")


def test_a_bare_machine() -> None:
    fits = (preset_fits("7b", None, []),)
    shown = printed(
        replace(TWO_GPUS, cuda=None, nccl=None, gpus=(), backends=(), memory=None, variables={}, presets=fits)
    )
    assert "torch 2.11.0 without CUDA, Linux" in shown
    assert "backends: none\n" in shown
    assert "gpus: none\n" in shown
    assert "variables that can change bits: none set\n" in shown
    assert ["7b", "25.4 GiB", "unknown", "none", "none"] in [
        [cell.strip() for cell in line.split("│")] for line in shown.splitlines()
    ]


def test_this_machine_is_described_and_nothing_is_judged(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NCCL_ALGO", "Tree")
    assert main(["doctor", "--json", str(tmp_path / "machine.json")]) == 0
    out = capsys.readouterr().out
    assert f"torch {torch.__version__}" in out
    assert "NCCL_ALGO=Tree" in out
    found = json.loads((tmp_path / "machine.json").read_text())
    assert found["cores"] == len(os.sched_getaffinity(0))
    assert pytest.__version__ in [p["version"] for p in found["packages"] if p["name"] == "pytest"]
    assert found["variables"] == bit_variables(os.environ)
    assert "gloo" in found["backends"]
    assert found["memory"] > 0


def test_a_document_on_standard_output_has_it_to_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json", "-"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["kind"] == "doctor"
    assert "What this machine can run" in captured.err


def test_a_target_is_shown_with_what_of_it_can_be_judged(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["init", str(tmp_path)]) == 0
    target = f"{tmp_path}/verify_target.py:MyTarget"
    capsys.readouterr()
    assert main(["doctor", "--target", target, "--json", str(tmp_path / "machine.json")]) == 0
    rows = [[cell.strip() for cell in line.split("│")] for line in capsys.readouterr().out.splitlines()]
    assert ["loop parallel is held to local"] in rows
    assert ["text", "2", "cond, uncond", ""] in rows
    assert ["text and image", "-", "-", "cfg_img_scale is 1.5, expected 1.0: two branches only; leave it out"] in rows
    assert json.loads((tmp_path / "machine.json").read_text())["command"] == f"verify doctor --target {target}"
    assert main(["doctor", "--target", f"{tmp_path}/verify_target.py:Nobody"]) == 2
    assert "Nobody" in capsys.readouterr().err


def test_packages_without_their_metadata_are_missing() -> None:
    assert machine.package_version("no-such-package-at-all") is None


def test_engines_are_looked_for_and_never_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in machine.ENGINES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise AssertionError('imported')")
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    assert inspect_machine().engines == dict.fromkeys(machine.ENGINES, True)
    assert not set(machine.ENGINES) & set(sys.modules)


def test_7b_needs_what_bagel_needs() -> None:
    """13.6 billion parameters, two bytes each."""
    assert 25 * GIB < preset_fits("7b", None, []).weights < 26 * GIB


@pytest.mark.parametrize(
    ("memory", "gpus", "expected"),
    [
        (20, [], (0, 0, 0)),
        (27, [], (1, 0, 0)),
        (53, [], (2, 0, 0)),
        (None, [], (None, 0, 0)),
        (20, [139], (0, 1, 5)),
        (20, [27], (0, 0, 0)),
        (20, [28], (0, 1, 1)),
        (20, [79, 79], (0, 2, 4)),
        (20, [79, 30], (0, 2, 2)),
        (20, [79, 10], (0, 0, 0)),
    ],
)
def test_which_ranks_of_7b_fit(memory: int | None, gpus: list[int], expected: tuple[int | None, int, int]) -> None:
    fits = preset_fits("7b", None if memory is None else memory * GIB, [free * GIB for free in gpus])
    assert (fits.cpu_ranks, fits.nccl_ranks, fits.gloo_cuda_ranks) == expected


def test_no_more_ranks_than_a_pool_takes() -> None:
    fits = preset_fits("tiny", 10_000 * GIB, [1000 * GIB] * 2)
    assert (fits.cpu_ranks, fits.gloo_cuda_ranks) == (MOST_RANKS, MOST_RANKS)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"meminfo": "MemTotal: 9 kB\nMemAvailable:    4096 kB\n"}, 4 << 20),
        ({"meminfo": "MemAvailable: 4096 kB\n", "memory.max": "3000000", "memory.current": "1000000"}, 2_000_000),
        ({"meminfo": "MemAvailable: 4096 kB\n", "memory.max": "max", "memory.current": "1000000"}, 4 << 20),
        ({"meminfo": "MemAvailable: 4096 kB\n", "memory.max": "1", "memory.current": "2"}, 0),
        ({"memory.max": "3000", "memory.current": "1000"}, 2000),
        ({"meminfo": "nothing to see\n"}, None),
        ({}, None),
    ],
)
def test_memory_that_is_left(tmp_path: Path, files: dict[str, str], expected: int | None) -> None:
    for place in ("proc/self", "sys/fs/cgroup"):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    for name, text in files.items():
        (tmp_path / ("proc" if name == "meminfo" else "sys/fs/cgroup") / name).write_text(text)
    assert available_memory(tmp_path) == expected


def test_a_gpu_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(index: int) -> None:
        raise RuntimeError(f"CUDA error {index}: unspecified launch failure\nCompile with ...")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", broken)
    found = inspect_machine()
    assert found.gpu_trouble == "RuntimeError: CUDA error 0: unspecified launch failure"
    assert "gpus: could not be asked: RuntimeError: CUDA error 0" in printed(found)
    assert "gpus: none" not in printed(found)


def test_gpus_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(name="NVIDIA H200", major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (100 * GIB, 139 * GIB))
    found = inspect_machine()
    assert found.gpus == (Gpu(index=0, name="NVIDIA H200", capability="9.0", memory=139 * GIB, free=100 * GIB),)
    assert found.presets[-1].gloo_cuda_ranks == 3


def test_folders(tmp_path: Path) -> None:
    found = folder(tmp_path)
    assert found is not None
    assert (found.path, found.writable) == (str(tmp_path), True)
    assert found.free > 0
    assert folder(tmp_path / "absent") is None
    assert folder(None) is None
