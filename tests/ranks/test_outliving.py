"""Nothing outlives the controller, however it ends, and nothing is left on a disk."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from patience import patient
from pools import alive, marked, wait_until

HERE = Path(__file__).parent
# From the controller's end to the end of all else.
SECONDS = 5.0

# Rank 0 starts a process of its own; both ranks then sleep. Printed: the fork server, the ranks.
CONTROLLER = """
import sys
import tasks
from verify.ranks.local.forkserver import fork_server
from verify.ranks.local.pool import PoolSpec, RankPool
pool = RankPool(PoolSpec(("cpu", "cpu")))
pool.start()
print(fork_server().process.pid, *pool.pids, flush=True)
pool.run(tasks.start_a_process_and_sleep, 600.0, timeout=600.0)
"""


@dataclass
class Tree:
    """A controller and what it has started."""

    controller: subprocess.Popen[str]
    server: int
    ranks: list[int]
    mark: str
    folder: Path

    def left(self) -> dict[int, str]:
        return marked(self.mark)

    def all_gone(self) -> None:
        assert wait_until(lambda: not self.left(), patient(SECONDS)), self.left()
        assert list(self.folder.iterdir()) == []
        pids = {str(pid) for pid in (self.controller.pid, self.server, *self.ranks)}
        assert [name for name in os.listdir("/dev/shm") if pids & set(re.findall(r"\d+", name))] == []


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    mark = f"verify-test-{uuid.uuid4()}"
    path = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    variables = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": path, "VERIFY_TEST_MARK": mark}
    controller = subprocess.Popen(
        [sys.executable, "-c", CONTROLLER],
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert controller.stdout is not None
        server, *ranks = map(int, controller.stdout.readline().split())
        assert len(ranks) == 2
        grown = Tree(controller, server, ranks, mark, tmp_path)
        # The controller, the fork server, two ranks and what each of the ranks started.
        assert wait_until(lambda: len(grown.left()) == 6, 120.0), grown.left()
        yield grown
    finally:
        controller.kill()
        controller.communicate(timeout=120)
        for pid in marked(mark):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGKILL, id="SIGKILL"),
        pytest.param(signal.SIGTERM, id="SIGTERM", marks=pytest.mark.nightly),
        pytest.param(signal.SIGINT, id="SIGINT", marks=pytest.mark.nightly),
    ],
)
def test_a_signal_to_the_controller(tree: Tree, number: signal.Signals) -> None:
    os.kill(tree.ranks[1], signal.SIGSTOP)  # One that is stopped is the hardest to end.
    tree.controller.send_signal(number)
    _, errors = tree.controller.communicate(timeout=patient(10))
    assert tree.controller.returncode == -number
    assert errors.count("Traceback") == (number == signal.SIGINT)
    tree.all_gone()


@pytest.mark.nightly
def test_the_controller_is_killed_while_the_fork_server_is_stopped(tree: Tree) -> None:
    os.kill(tree.server, signal.SIGSTOP)
    os.kill(tree.ranks[0], signal.SIGSTOP)
    tree.controller.kill()
    tree.controller.wait(patient(10))
    tree.all_gone()


def test_the_fork_server_is_killed(tree: Tree) -> None:
    os.kill(tree.ranks[1], signal.SIGSTOP)
    os.kill(tree.server, signal.SIGKILL)
    _, errors = tree.controller.communicate(timeout=patient(15))
    assert tree.controller.returncode == 1
    assert "was killed together with the process that ranks are forked from" in errors
    assert not any(map(alive, tree.ranks))
    # What ranks had started loses its keeper with the fork server: nobody else can know of it.
    assert all(command.startswith("sleep") for command in tree.left().values())


@pytest.mark.nightly
def test_the_fork_server_is_stopped_and_then_the_controller_interrupted(tree: Tree) -> None:
    os.kill(tree.server, signal.SIGSTOP)
    tree.controller.send_signal(signal.SIGINT)
    _, errors = tree.controller.communicate(timeout=patient(15))
    assert tree.controller.returncode == -signal.SIGINT
    assert errors.count("Traceback") == 1
    assert not any(map(alive, [tree.server, *tree.ranks]))
