"""One rank of ``verify run`` is killed from outside in the middle of a step: what is said, what is left, how soon."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from patience import patient
from pools import marked, wait_until

ROOT = Path(__file__).parents[2]
# From the kill to the end of the command, and from its end to the last of its processes.
SECONDS, LEFTOVER = 30.0, 5.0
MIB = 1 << 20
# A process that is left holds several hundred MiB by its context alone.
SLACK = 64 * MIB

# Rank 1 says who it is in the middle of step 5 and computes until it is killed; the others wait for it in a collective.
LOOP = """
import os
from pathlib import Path
from verify.loops.local import local
def loop(denoiser, request, x_0, group, observe):
    def watch(step, x_t):
        observe(step, x_t)
        if (group.rank, step) == (1, 4):
            Path(__file__).with_suffix(".tmp").write_text(str(os.getpid()))
            Path(__file__).with_suffix(".tmp").rename(Path(__file__).with_suffix(".pid"))
            while True:
                denoiser.velocity(x_t, step + 1, "gen")
    return local(denoiser, request, x_0, group, watch)
"""


@dataclass
class Killed:
    """What came of it.

    Attributes:
        seconds: from the kill to the end of the command.
        report: the JSON document.
        used: bytes of GPU memory in use at the time of the kill, beyond those before the command.
        kept: likewise, soon after its end.
    """

    seconds: float
    report: dict[str, Any]
    used: int = 0
    kept: int = 0


def free_memory() -> int:
    """Bytes free on all GPUs together."""
    return sum(torch.cuda.mem_get_info(gpu)[0] for gpu in range(torch.cuda.device_count()))


def kill_a_rank(folder: Path, device: str, preset: str) -> Killed:
    """Runs the command, kills rank 1, and checks the exit status and that no process is left."""
    on_gpu = device == "cuda"
    before = free_memory() if on_gpu else 0
    loop, document, mark = folder / "loop.py", folder / "report.json", f"verify-test-{uuid.uuid4()}"
    loop.write_text(LOOP)
    words = ["--loop", f"{loop}:loop", "--device", device, "--preset", preset, "--world-size", "2"]
    command = subprocess.Popen(
        [sys.executable, "-m", "verify", "run", *words, "--json", str(document), "--timeout", "500"],
        cwd=ROOT,
        env=os.environ | {"VERIFY_TEST_MARK": mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert wait_until(lambda: loop.with_suffix(".pid").exists() or command.poll() is not None, 500.0)
        assert command.poll() is None, command.communicate()[0]
        used = before - free_memory() if on_gpu else 0
        os.kill(int(loop.with_suffix(".pid").read_text()), signal.SIGKILL)
        began = time.monotonic()
        said, _ = command.communicate(timeout=SECONDS if on_gpu else patient(SECONDS))
        seconds = time.monotonic() - began
        assert command.returncode == 3, said
        assert wait_until(lambda: not marked(mark), patient(LEFTOVER)), marked(mark)
    finally:
        command.kill()
        for pid in marked(mark):
            os.kill(pid, signal.SIGKILL)
    if on_gpu:
        wait_until(lambda: before - free_memory() < SLACK, LEFTOVER)  # The driver takes its time.
    return Killed(seconds, json.loads(document.read_text()), used, before - free_memory() if on_gpu else 0)


def is_told(killed: Killed) -> None:
    """Checks that the report names the rank, how it ended and where, and the place of the other."""
    assert killed.report["verdict"] == "unknown"
    victim, other = killed.report["failure"]["ranks"]
    assert (victim["rank"], victim["state"], victim["step"]) == (1, "died", 4)
    assert victim["what"] == "was killed by SIGKILL: out of memory, or somebody killed it"
    assert other["rank"] == 0
    # Over NCCL calls return early: the process may stand anywhere from there on while its GPU waits in the gather.
    assert other["step"] == 4 or (killed.report["backend"], other["step"] > 4) == ("nccl", True)
    if killed.report["backend"] == "nccl" and (other["step"], other["activity"][:8]) == (4, "velocity"):
        # The host has run ahead and stands where the victim's does, all gathers called, while its GPU waits in one of
        # them for the GPU that is gone: which one no host knows, so none may be named.
        assert "awaited" not in killed.report["failure"]
    elif other["state"] != "raised":
        awaited = killed.report["failure"]["awaited"]
        assert awaited["collective"] == "all_gather 1 of step 5"
        where = "in" if other["activity"] == awaited["collective"] else "in or before"
        assert awaited["said"] == f"rank 0 waits {where} all_gather 1 of step 5, which rank 1 never joined"


def test_a_rank_killed_in_the_middle_of_a_step(tmp_path: Path) -> None:
    is_told(kill_a_rank(tmp_path, "cpu", "tiny"))


@pytest.mark.gpu
@pytest.mark.timeout(590)
@pytest.mark.skipif(
    "PYTEST_XDIST_WORKER" in os.environ, reason="measures whole GPUs: run it without -n, as .ci/gpus does"
)
def test_a_killed_ranks_gpu_memory_is_freed(
    tmp_path: Path, pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str]
) -> None:
    """With ``--preset 7b`` it is the 13 billion parameters of each rank that must come back."""
    killed = kill_a_rank(tmp_path, "cuda", pytestconfig.getoption("--preset"))
    with capsys.disabled():
        print(
            f"\nkilled in step 5: exit 3 after {killed.seconds:.1f} s; GPU memory in use: {killed.used / MIB:,.0f} MiB "
            f"at the kill, {killed.kept / MIB:,.0f} MiB after the command"
        )
    assert killed.used > 100 * MIB  # Or there was nothing to be freed.
    assert killed.kept < SLACK
    is_told(killed)
