"""``verify`` where it is not at home: odd variables, nowhere to write, no standard streams."""

from __future__ import annotations

import json
import os
import platform
import resource
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from patience import patient

ROOT = Path(__file__).parents[2]
SHORT = ["run", "--num-timesteps", "4", "--height", "32", "--width", "32", "--requests", "one"]


def verify(*words: str, **how: Any) -> subprocess.CompletedProcess[str]:
    variables = {"PYTHONPATH": str(ROOT)} | how.pop("variables", {})
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": os.environ | variables} | how
    return subprocess.run([sys.executable, "-m", "verify", *words], text=True, timeout=280, **how)


@pytest.mark.nightly
def test_it_works_far_from_home() -> None:
    """All at once: none of these may matter."""
    variables = {
        **{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "COLUMNS": "many", "TERM": "nonsense"},
        **{
            "PYTHONIOENCODING": "",
            "TMPDIR": "/nowhere",
            "MASTER_ADDR": "nowhere",
            "MASTER_PORT": "http",
            "PYTHONPATH": str(ROOT),
        },
    }
    without_home = {name: value for name, value in os.environ.items() if name != "HOME"} | variables
    # Where nothing can be written, whoever one is.
    done = verify(*SHORT, cwd="/proc", env=without_home, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stderr) == (0, ""), done
    assert "pass; exit status 0" in done.stdout
    assert done.stdout.isascii()


def test_a_full_disk_behind_standard_output_is_no_verdict() -> None:
    with open("/dev/full", "w") as full:
        done = verify("doctor", stdout=full)
    assert done.returncode == 3
    assert done.stderr == (
        "verify: nothing more could be written: No space left on device; make room and start again\n"
    )


@pytest.mark.nightly
def test_a_full_disk_behind_an_output_file(tmp_path: Path) -> None:
    """By a limit on the size of files, which stands for a disk with so much left."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512))

    path = tmp_path / "machine.json"
    path.write_text("old")
    done = verify("doctor", "--json", str(path), preexec_fn=limit)
    assert done.returncode == 2
    assert done.stderr.startswith(f"verify: the output file is '{path}', expected a file that can be written; ")
    assert done.stderr.count("\n") == 1
    assert {entry.name: entry.read_text() for entry in tmp_path.iterdir()} == {"machine.json": "old"}


def test_a_working_directory_that_has_been_removed(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    done = verify("run", cwd=folder, preexec_fn=folder.rmdir)
    assert (done.returncode, done.stdout) == (2, "")
    expected = "the working directory has been removed, expected one that exists; change to another"
    assert done.stderr == f"verify: {expected}\n"


def test_closed_streams(tmp_path: Path) -> None:
    def close_one() -> None:
        os.close(2)

    def close_all() -> None:
        os.closerange(0, 3)

    assert verify("run", "--seed", "x", preexec_fn=close_one).returncode == 2
    path = tmp_path / "machine.json"
    assert verify("doctor", "--json", str(path), preexec_fn=close_all).returncode == 0
    assert path.read_text().startswith("{")


def test_nobody_reads_on(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as pipe:
        done = verify("doctor", stdout=pipe)
    assert (done.returncode, done.stderr) == (3, "")


@pytest.mark.nightly
def test_ascii_alone_behind_standard_output() -> None:
    done = verify(*SHORT, "--markdown", "-", variables={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done
    assert done.stdout.startswith("## + pass: ")
    assert done.stdout.isascii()


@pytest.mark.nightly
def test_a_verdict_that_nobody_reads_is_the_exit_status_all_the_same(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    path = tmp_path / "run.json"
    with open(write, "w") as pipe:
        done = verify(*SHORT, "--json", str(path), stdout=pipe)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(path.read_text())["verdict"] == "pass"


@pytest.mark.nightly
def test_a_full_disk_behind_the_page_of_a_run(tmp_path: Path) -> None:
    """What is printed says the exit status that there is."""
    words = shlex.join([sys.executable, "-m", "verify", *SHORT, "--html", str(tmp_path / "page.html")])
    small = f"mount -t tmpfs -o size=16k none {tmp_path} && cd / && exec {words}"
    done = in_mounts_of_its_own(small)
    assert done.returncode == 3
    assert done.stdout.rstrip().endswith("pass; exit status 3, since what was asked for could not be written")
    (line,) = done.stderr.splitlines()
    assert line.startswith("verify: the output file is ")
    assert "No space left on device" in line


@pytest.mark.nightly
@pytest.mark.skipif(platform.machine() != "x86_64", reason="system calls are numbered for x86-64")
def test_memfd_create_is_refused() -> None:
    """As in some containers: a temporary file without a name does as well."""
    deny = Path(__file__).parents[1] / "helpers" / "deny.py"
    words = [sys.executable, str(deny), "319", "1", sys.executable, "-m", "verify", *SHORT]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, text=True, capture_output=True, timeout=280, env=environment)
    assert done.returncode == 0, done
    assert "pass; exit status 0" in done.stdout


def test_no_proc() -> None:
    words = shlex.join([sys.executable, "-m", "verify", *SHORT])
    done = in_mounts_of_its_own(f"mount -t tmpfs none /proc && exec {words}")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == "verify: /proc is not mounted here, and ranks open what they share through it; mount it\n"


def in_mounts_of_its_own(script: str) -> subprocess.CompletedProcess[str]:
    """Runs a shell script that may mount what it likes; skips the test where that cannot be."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("mount namespaces are not to be had here")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", script], text=True, capture_output=True, timeout=280, env=environment
    )


@pytest.mark.parametrize("most", [5, pytest.param(8, marks=pytest.mark.nightly)])
def test_few_processes_are_allowed(most: int) -> None:
    group = Path("/sys/fs/cgroup/pids") / f"verify-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        pytest.skip("control groups of version 1 cannot be made here")
    try:
        (group / "pids.max").write_text(str(most))
        began = time.monotonic()

        def enter() -> None:
            (group / "cgroup.procs").write_text(str(os.getpid()))

        done = verify(*SHORT, "--timeout", "30", preexec_fn=enter)
        assert done.returncode == 3
        assert "Resource temporarily unavailable" in done.stdout
        assert time.monotonic() - began < patient(60.0)
    finally:
        group.rmdir()
