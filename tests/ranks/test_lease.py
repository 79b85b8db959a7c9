"""GPU leases between processes: all or none, freed with their holder, and clear words where there are none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from patience import patient

from verify.errors import Unjudged
from verify.ranks.local.lease import lease, lock_folder

HOLDER = """
import sys, time
from pathlib import Path
from verify.ranks.local.lease import lease
with lease([int(gpu) for gpu in sys.argv[2].split(",")], 120.0, Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[3]))
"""

Hold = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Hold]:
    """Starts a process that holds GPUs; by default, returns when it does."""
    started = []

    def start(gpus: str, seconds: float = 60.0, wait: bool = True) -> subprocess.Popen[str]:
        root = str(Path(__file__).parents[2])
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path), gpus, str(seconds)],
            env=os.environ | {"PYTHONPATH": root},
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(holder)
        if wait:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
        return holder

    yield start
    for holder in started:
        holder.kill()
        holder.communicate()


def free(gpus: list[int], folder: Path) -> bool:
    try:
        with lease(gpus, 0.0, folder):
            return True
    except Unjudged:
        return False


def test_all_or_none(hold: Hold, tmp_path: Path) -> None:
    hold("1,2")
    for wanted in ([1], [2], [0, 1], [2, 3], [0, 1, 2, 3]):
        assert not free(wanted, tmp_path)
    assert free([0], tmp_path)  # Not kept by a lease that came to nothing.
    assert free([3], tmp_path)
    assert free([], tmp_path)


def test_a_killed_holder_frees_its_lease(hold: Hold, tmp_path: Path) -> None:
    holder = hold("0,1")
    assert not free([1], tmp_path)
    os.kill(holder.pid, signal.SIGSTOP)  # A stopped holder still holds.
    assert not free([1], tmp_path)
    holder.kill()
    with lease([1, 0], patient(5.0), tmp_path):
        pass


def test_the_next_in_line_gets_them(hold: Hold, tmp_path: Path) -> None:
    hold("0,1", seconds=0.3)
    began = time.monotonic()
    with lease([1, 2], 120.0, tmp_path):
        assert time.monotonic() - began < patient(5.0)


def test_overlapping_sets_take_turns(hold: Hold, tmp_path: Path) -> None:
    holders = [hold(gpus, 0.1, False) for gpus in ("0,1", "1,2", "2,0", "0,1,2")]
    assert [holder.wait(120) for holder in holders] == [0] * 4
    assert free([0, 1, 2], tmp_path)


def test_a_timeout_names_gpus_and_seconds(hold: Hold, tmp_path: Path) -> None:
    hold("1")
    began = time.monotonic()
    with pytest.raises(Unjudged) as caught, lease([2, 1, 1], 0.2, tmp_path):
        pytest.fail("held by two")
    assert 0.2 <= time.monotonic() - began < patient(2.0)
    assert str(caught.value) == (
        f"GPUs 1, 2 were not free together within 0.2 s: other runs on this host hold leases in {tmp_path}; "
        "wait for them or ask for fewer GPUs"
    )


def test_an_exception_in_the_block_gives_them_back_and_stays_itself(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="mine"), lease([0], 1.0, tmp_path):
        raise FileNotFoundError("mine")
    assert free([0], tmp_path)


def test_gpus_are_named_as_the_host_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-8f2/a")
    with lease([0, 1, 2], 1.0, tmp_path):
        names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"gpu-3.lock", "gpu-GPU-8f2_a.lock", "gpu-2.lock"}


def test_the_folder_is_the_users_own_whatever_the_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert lock_folder() == Path(f"/tmp/verify-gpu-leases-{os.getuid()}")
    assert lock_folder().stat().st_mode & 0o077 == 0
    assert not any(tmp_path.iterdir())


def refused(folder: Path) -> str:
    with pytest.raises(Unjudged) as caught, lease([0], 1.0, folder):
        pytest.fail("held in a folder that cannot be used")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "leases"
    path.touch()
    assert refused(path) == f"GPU leases cannot be kept in {path}: File exists; make it a folder that you can write to"


def test_a_folder_nowhere(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "leases"
    assert "No such file or directory; make it a folder that you can write to" in refused(path)


def test_a_folder_that_is_a_link(tmp_path: Path) -> None:
    path = tmp_path / "leases"
    (tmp_path / "elsewhere").mkdir()
    path.symlink_to(tmp_path / "elsewhere")
    assert refused(path) == f"GPU leases belong in {path}, which is a link or another user's; remove it"


def test_another_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    assert refused(tmp_path).endswith("which is a link or another user's; remove it")


def test_a_folder_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.getuid():
        tmp_path.chmod(0o500)
    else:  # Who may do everything is refused nothing: the lock refuses instead.

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("verify.ranks.local.lease.FileLock.acquire", refuse)
    expected = f"GPU leases cannot be kept in {tmp_path}: Permission denied; make it a folder that you can write to"
    assert refused(tmp_path) == expected
    tmp_path.chmod(0o700)
