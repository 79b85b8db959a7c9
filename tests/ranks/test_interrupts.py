"""``verify run`` under Ctrl-C, SIGTERM and SIGKILL: its exit status, nothing left running, output whole or absent."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from patience import patient
from pools import marked, wait_until

from verify.report.documents.reading import document_of

ROOT = Path(__file__).parents[2]
OLD = '{"an": "older document"}'
# Clean-up included.
SECONDS = 8.0

LOOP = """
import time
from pathlib import Path
def loop(denoiser, request, x_0, group, observe):
    x_t = group.broadcast(x_0)
    for step in range(request.schedule.steps):
        if step == 3:
            Path(__file__).with_suffix(f".{group.rank}").touch()
            while True:
                time.sleep(0.01)
        observe(step, x_t)
"""


@dataclass
class Command:
    """A ``verify run`` under way, and where it writes."""

    process: subprocess.Popen[str]
    mark: str
    folder: Path
    json: Path

    def ended(self, status: int) -> str:
        """Checks how it ended and that nothing of it is left; returns what it said."""
        _, errors = self.process.communicate(timeout=patient(SECONDS))
        assert self.process.returncode == status, errors
        assert wait_until(lambda: not marked(self.mark), patient(5.0)), marked(self.mark)
        assert self.json.read_text() == OLD
        assert {path.name.split(".")[0] for path in self.folder.iterdir()} <= {"report", "loop", "__pycache__"}
        return errors

    def reached_step_3(self) -> None:
        assert wait_until(lambda: all((self.folder / f"loop.{rank}").exists() for rank in range(2)), 120.0)


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Command]:
    loop, json_file = tmp_path / "loop.py", tmp_path / "report.json"
    loop.write_text(LOOP)
    json_file.write_text(OLD)
    mark = f"verify-test-{uuid.uuid4()}"
    process = subprocess.Popen(
        [sys.executable, "-m", "verify", "run", "--loop", f"{loop}:loop", "--json", str(json_file), "--timeout", "120"],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path), "VERIFY_TEST_MARK": mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield Command(process, mark, tmp_path, json_file)
    finally:
        process.kill()
        process.communicate(timeout=120)
        for pid in marked(mark):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"])
def test_in_the_middle_of_a_loop(command: Command, number: signal.Signals, status: int) -> None:
    command.reached_step_3()
    command.process.send_signal(number)
    assert command.ended(status).splitlines()[-1] == "verify: interrupted"


@pytest.mark.nightly
def test_many_times_in_the_middle_of_a_loop(command: Command) -> None:
    command.reached_step_3()
    for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGINT):
        command.process.send_signal(number)
        time.sleep(0.03)
    errors = command.ended(130)
    assert "Traceback" not in errors
    assert errors.count("verify: interrupted") == 1


@pytest.mark.parametrize("after", [0.25, 1.0])
def test_while_it_starts(command: Command, after: float) -> None:
    # Python itself must be up: before that, it is Python that ends.
    assert wait_until(lambda: len(marked(command.mark)) >= 2, 120.0)
    time.sleep(after)
    command.process.send_signal(signal.SIGINT)
    errors = command.ended(130)
    assert "Traceback" not in errors
    assert errors.splitlines()[-1] == "verify: interrupted"


def test_when_all_is_done(tmp_path: Path) -> None:
    """Python takes its handlers down before it ends; the exit status is that of the command all the same."""
    summary = tmp_path / "summary.md"
    document = ROOT / "fixtures" / "results" / "mutation.json"
    for late in (0.0, 0.02, 0.05):
        summary.unlink(missing_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-m", "verify", "report", str(document), "--markdown", str(summary)],
            cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert wait_until(summary.exists, 60.0)
        time.sleep(late)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=patient(SECONDS))
        assert process.returncode in (0, 130), errors
        assert "Traceback" not in errors


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_at_any_moment_once_and_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the start of Python to the end of the command: interrupted or finished, and nothing between the two."""
    seed = random.SystemRandom().getrandbits(32)
    draw, whole, ends = random.Random(seed), 0.0, Counter[int]()
    for run in range(30):
        path, mark = tmp_path / "report.json", f"verify-test-{uuid.uuid4()}"
        path.write_text(OLD)
        began = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "verify", "run", "--num-timesteps", "20", "--json", str(path)],
            cwd=ROOT,
            env=os.environ | {"TMPDIR": str(tmp_path), "VERIFY_TEST_MARK": mark},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        if run:
            # Python itself must be up: before that, it is Python that ends.
            assert wait_until(lambda mark=mark: len(marked(mark)) >= 2, 120.0)  # type: ignore[misc]
            time.sleep(draw.uniform(0.0, whole))
            for _ in range(draw.choice((1, 2))):
                process.send_signal(signal.SIGINT)
                time.sleep(draw.uniform(0.0, 0.1))
        _, errors = process.communicate(timeout=patient(60.0))
        whole = whole or time.monotonic() - began
        ends[process.returncode] += 1
        context = f"seed {seed}, run {run}: exit {process.returncode}, {errors}"
        assert process.returncode in (0, 130), context
        assert "Traceback" not in errors, context
        assert wait_until(lambda mark=mark: not marked(mark), patient(5.0)), context  # type: ignore[misc]
        if process.returncode == 130:
            assert path.read_text() == OLD or json.loads(path.read_text())["verdict"] == "pass", context
        else:
            document_of(json.loads(path.read_text()))
        assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"], context
    with capsys.disabled():
        print(f"\n30 runs with seed {seed}: {dict(ends)} by exit status")
    assert ends[130] >= 10


WRITER = """
import sys
from verify.report.disk import write_whole
print("writing", flush=True)
while True:
    for letter in "ab":
        write_whole(sys.argv[1], letter * (1 << 22))
"""


def is_whole(path: Path) -> bool:
    content = path.read_bytes()
    return content in (b"a" * (1 << 22), b"b" * (1 << 22))


def test_a_document_is_whole_at_every_moment_and_its_killed_writer_leaves_no_half(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(OLD)
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"
        assert wait_until(lambda: path.read_text() != OLD, 120.0)
        for _ in range(30):
            assert is_whole(path)
    finally:
        writer.kill()
        writer.communicate()
    assert is_whole(path)
    # A file that has a name is whole: one killed between naming and moving it leaves a second whole one at most.
    assert all(map(is_whole, tmp_path.iterdir()))


def test_a_run_that_nobody_interrupts_writes_its_document(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(OLD)
    command = [sys.executable, "-m", "verify", "run", "--num-timesteps", "4", "--requests", "one", "--json", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    document = json.loads(path.read_text())
    document_of(document)
    assert document["verdict"] == "pass"
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]
