"""Under Open MPI's mpirun itself, on this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from launches import FEW, LOOPS, ROOT, environment, free_port, valid

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.timeout(590),
    pytest.mark.skipif(shutil.which("mpirun") is None, reason="mpirun not found: apt-get install openmpi-bin"),
]


def mpirun(
    folder: Path, processes: int, *arguments: str, options: tuple[str, ...] = (), **variables: str
) -> subprocess.CompletedProcess[str]:
    root = ("--allow-run-as-root",) if os.getuid() == 0 else ()
    words = [
        "mpirun",
        *root,
        "--oversubscribe",
        *options,
        "-n",
        str(processes),
        sys.executable,
        "-m",
        "verify",
    ]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "FOLDER": str(folder)}
    return subprocess.run(
        [*words, *arguments, "--json", str(folder / "run.json")],
        env=environment() | meeting | variables,
        capture_output=True,
        text=True,
        timeout=400,
        cwd=ROOT,
    )


@pytest.mark.parametrize(
    ("processes", "more", "options"),
    [
        (2, (), ("--bind-to", "core")),
        (4, (), ("--bind-to", "none")),
        (6, ("--cfg-img-scale", "1.5"), ("--bind-to", "none", "--tag-output")),
    ],
)
def test_replicas_pass(tmp_path: Path, processes: int, more: tuple[str, ...], options: tuple[str, ...]) -> None:
    done = mpirun(tmp_path, processes, *FEW, *more, options=options)
    assert done.returncode == 0, done
    found = valid(json.loads((tmp_path / "run.json").read_text()))
    assert found["verdict"] == "pass"
    assert len(found["replicas"]) == (1 if processes == 2 else 2)


def test_a_wrong_bit_is_a_failure_of_every_process(tmp_path: Path) -> None:
    done = mpirun(tmp_path, 2, *FEW, "--loop", f"{LOOPS}:one_ulp", VICTIM="1")
    assert done.returncode == 1, done
    assert json.loads((tmp_path / "run.json").read_text())["verdict"] == "fail"


def test_a_rank_that_leaves(tmp_path: Path) -> None:
    """mpirun ends the others as soon as one has left: by SIGTERM first, which is a finding and not the end."""
    done = mpirun(tmp_path, 4, *FEW, "--loop", f"{LOOPS}:leaves", VICTIM="3")
    assert done.returncode not in (0, 1), done
