"""``verify`` where it is not at home: odd variables, nowhere to write, no standard streams."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SHORT = ["run", "--num-timesteps", "4", "--height", "32", "--width", "32"]


def verify(*words: str, **how: Any) -> subprocess.CompletedProcess[str]:
    variables = {"PYTHONPATH": str(ROOT)} | how.pop("variables", {})
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": os.environ | variables} | how
    return subprocess.run([sys.executable, "-m", "verify", *words], text=True, timeout=280, **how)


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


def test_a_full_disk_behind_an_output_file(tmp_path: Path) -> None:
    """By a limit on the size of files, which stands for a disk with so much left."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512))

    path = tmp_path / "machine.json"
    path.write_text("old")
    done = verify("doctor", "--json", str(path), preexec_fn=limit)
    assert done.returncode == 2
    assert done.stderr.startswith(f"verify: the output file is '{path}', expected a place that can be written; ")
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
