"""Under Slurm itself: one controller and two slurmd on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from launches import FEW, LOOPS, ROOT, environment, free_port, valid
from slurm import Slurm, missing

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(590)]


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    if reason := missing():
        pytest.skip(reason)
    with Slurm(2) as cluster:
        yield cluster


class Step:
    """``verify`` under srun, on both nodes."""

    def __init__(
        self, slurm: Slurm, folder: Path, tasks: int, *arguments: str, srun: tuple[str, ...] = (), **variables: str
    ) -> None:
        self.folder, self.json = folder, folder / "run.json"
        words = ["srun", "-N", "2", "-n", str(tasks), "-J", folder.name[-40:], *srun, sys.executable, "-m", "verify"]
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "FOLDER": str(folder)}
        with open(folder / "srun", "wb") as output:
            self.process = subprocess.Popen(
                [*words, *arguments, "--json", str(self.json)],
                env=environment() | slurm.environment | meeting | variables,
                stdout=output,
                stderr=output,
                cwd=ROOT,
            )

    def wait_for(self, what: str) -> None:
        """Returns once a rank has left a file of that name."""
        deadline = time.monotonic() + 150
        while not (self.folder / what).exists():
            assert time.monotonic() < deadline and self.process.poll() is None, self.output()
            time.sleep(0.1)

    def end(self, seconds: float = 200.0) -> int:
        """srun's exit status, which is the greatest of the tasks'."""
        try:
            return self.process.wait(seconds)
        finally:
            self.process.kill()

    def output(self) -> str:
        return (self.folder / "srun").read_text(errors="replace")

    def document(self) -> dict[str, Any]:
        return valid(json.loads(self.json.read_text()))


@pytest.mark.parametrize(("tasks", "more"), [(2, ()), (4, ()), (6, ("--cfg-img-scale", "1.5"))])
def test_replicas_pass(slurm: Slurm, tmp_path: Path, tasks: int, more: tuple[str, ...]) -> None:
    step = Step(slurm, tmp_path, tasks, *FEW, *more)
    assert step.end() == 0, step.output()
    found = step.document()
    assert found["verdict"] == "pass"
    assert len(found["replicas"]) == (1 if tasks == 2 else 2)
    assert found["command"].startswith(f"srun -n {tasks} python -m verify run")


def test_labels_before_each_line(slurm: Slurm, tmp_path: Path) -> None:
    step = Step(slurm, tmp_path, 2, *FEW, srun=("--label",))
    assert step.end() == 0
    assert {line.partition(":")[0] for line in step.output().splitlines()} == {"0"}


def test_a_rank_that_leaves(slurm: Slurm, tmp_path: Path) -> None:
    step = Step(slurm, tmp_path, 4, *FEW, "--loop", f"{LOOPS}:leaves", VICTIM="3")
    assert step.end() == 7, step.output()  # The victim's own; srun reports the greatest.
    first = step.document()["failure"]["ranks"][0]
    assert (first["rank"], first["state"]) == (3, "died")
    assert first["where"].startswith("rank 1 of replica 1")


def test_a_rank_that_is_killed(slurm: Slurm, tmp_path: Path) -> None:
    step = Step(slurm, tmp_path, 2, *FEW, "--loop", f"{LOOPS}:stands", VICTIM="1")
    step.wait_for("stands 1")
    os.kill(int((tmp_path / "stands 1").read_text()), signal.SIGKILL)
    assert step.end() in (3, 128 + signal.SIGKILL, signal.SIGKILL), step.output()
    assert step.document()["failure"]["ranks"][0]["rank"] == 1


def job_of(slurm: Slurm, tmp_path: Path) -> str:
    return slurm.run("squeue", "-h", "-n", tmp_path.name[-40:], "-o", "%i").strip()


def test_a_step_that_is_cancelled(slurm: Slurm, tmp_path: Path) -> None:
    """Nobody had failed: there is no verdict, and one line says why."""
    step = Step(slurm, tmp_path, 4, *FEW, "--loop", f"{LOOPS}:stands", VICTIM="1")
    step.wait_for("stands 1")
    slurm.run("scancel", job_of(slurm, tmp_path))
    assert step.end(60.0) != 0
    assert "verify: interrupted" in step.output() or not step.json.exists(), step.output()


def test_a_node_that_is_set_down(slurm: Slurm, tmp_path: Path) -> None:
    step = Step(slurm, tmp_path, 4, *FEW, "--loop", f"{LOOPS}:stands", VICTIM="1")
    step.wait_for("stands 1")
    try:
        slurm.run("scontrol", "update", "nodename=node2", "state=down", "reason=test")
        assert step.end(120.0) != 0
        assert not step.json.exists() or step.document()["verdict"] == "unknown"
    finally:
        slurm.run("scontrol", "update", "nodename=node2", "state=resume")


def test_a_time_limit(slurm: Slurm, tmp_path: Path) -> None:
    """Slurm ends all tasks, as by scancel; its limits count in minutes."""
    step = Step(slurm, tmp_path, 2, *FEW, "--loop", f"{LOOPS}:stands", srun=("--time", "1"), VICTIM="1")
    assert step.end(240.0) != 0
    assert "TIME LIMIT" in step.output()
    assert not step.json.exists()
