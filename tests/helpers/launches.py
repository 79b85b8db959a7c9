"""Starting ``verify`` under launchers, and what came of every process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verify.ranks.failure.processes import children, state_and_parent
from verify.report.documents.reading import document_of

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LOOPS = HERE / "launched_loops.py"
FEW = ("run", "--num-timesteps", "8")
TARGET = f"{HERE / 'launched_target.py'}:target"


def free_port() -> int:
    """A port that nobody listens on now. The store is the only one to be opened at a known number."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def environment() -> dict[str, str]:
    """As a user's shell would have it: no launcher's variables, one thread, this checkout importable."""
    launchers = ("SLURM_", "OMPI_", "PMI_", "MASTER_", "TORCHELASTIC_", "PYTEST_XDIST")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(launchers)}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def valid(document: dict[str, Any] | None) -> dict[str, Any]:
    """The same document, seen to fit its type."""
    assert document is not None
    document_of(document)
    return document


@dataclass
class Launched:
    """What came of a launch.

    Attributes:
        statuses: each rank's exit status, in the order of ranks; None for one that is not known.
        output: what each rank printed.
        document: what global rank 0 wrote; None if it wrote nothing.
        seconds: the whole launch.
    """

    statuses: list[int | None]
    output: list[str]
    document: dict[str, Any] | None
    seconds: float = 0.0

    def finding(self, name: str, loop: str = "local") -> dict[str, Any]:
        """What one check says."""
        assert self.document is not None
        (found,) = [c for c in self.document["checks"] if (c["name"], c["loop"]) == (name, loop)]
        assert isinstance(found, dict)
        return found

    def failed(self) -> set[str]:
        """The checks that failed."""
        assert self.document is not None
        return {check["name"] for check in self.document["checks"] if check["verdict"] == "fail"}


class Standin:
    """A launch of forked ranks that may be disturbed while it runs."""

    def __init__(
        self, folder: Path, world: int, arguments: Sequence[str], changes: Mapping[int, Mapping[str, str]] | None = None
    ) -> None:
        self.folder, self.world = folder, world
        self.json = folder / "run.json"
        self._began = time.monotonic()
        command = [sys.executable, str(HERE / "standin.py"), str(free_port()), str(world), str(folder)]
        command += [json.dumps(changes or {}), *arguments, "--json", str(self.json)]
        self.process = subprocess.Popen(
            command, env=environment(), stdout=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True
        )

    def _pid(self, rank: int) -> int:
        return int((self.folder / f"{rank}.pid").read_text())

    def signal(self, rank: int, number: int) -> None:
        """Sends a signal to one rank; one that has ended does not mind."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid(rank), number)

    def lives(self, rank: int) -> bool:
        """Whether one rank has not ended."""
        return state_and_parent(self._pid(rank))[0] not in ("", "Z")

    def wait_for(self, rank: int, what: str, seconds: float = 100.0) -> None:
        """Returns once ``rank`` has left a file that says ``what``."""
        deadline = time.monotonic() + seconds
        while not (self.folder / f"{what} {rank}").exists():
            assert time.monotonic() < deadline and self.process.poll() is None, self.outputs()
            time.sleep(0.02)

    def outputs(self) -> list[str]:
        """What each rank has printed so far."""
        files = [self.folder / str(rank) for rank in range(self.world)]
        return [file.read_text() if file.exists() else "" for file in files]

    def end(self, seconds: float = 120.0) -> Launched:
        """What came of it. Nothing is left when this returns or raises."""
        try:
            said, _ = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            said, _ = self.process.communicate()
            raise AssertionError(f"the launch did not end: {said}\n" + "\n".join(self.outputs())) from None
        statuses = {int(rank): int(status) for rank, status in (line.split() for line in said.splitlines())}
        document = json.loads(self.json.read_text()) if self.json.exists() else None
        return Launched(
            [statuses.get(rank) for rank in range(self.world)],
            self.outputs(),
            document,
            time.monotonic() - self._began,
        )


def stand_in(
    folder: Path, world: int, *arguments: str, changes: Mapping[int, Mapping[str, str]] | None = None
) -> Launched:
    """Launches ``verify`` with ``arguments`` in ``world`` forked processes and waits for them."""
    return Standin(folder, world, arguments, changes).end()


class Torchrun:
    """Torchrun's agents, one a node, all on this machine. Use it as a context manager: nothing is left."""

    def __init__(self, folder: Path, nodes: int, processes: int, *arguments: str, **variables: str) -> None:
        self.folder, self.nodes = folder, nodes
        self.json = folder / "run.json"
        port = str(free_port())
        self.agents = []
        for node in range(nodes):
            command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", str(nodes), "--node-rank", str(node)]
            command += ["--master-addr", "127.0.0.1", "--master-port", port, "--nproc-per-node", str(processes)]
            command += ["-m", "verify", *arguments, "--json", str(self.json)]
            with open(folder / f"agent {node}", "w") as output:
                self.agents.append(
                    subprocess.Popen(
                        command,
                        env=environment() | {"FOLDER": str(folder)} | variables,
                        stdout=output,
                        stderr=output,
                        cwd=ROOT,
                        start_new_session=True,
                    )
                )

    def __enter__(self) -> Torchrun:
        return self

    def __exit__(self, *_: object) -> None:
        for node in range(self.nodes):
            self.kill(node)

    def workers(self, node: int) -> list[int]:
        """The processes that an agent has started."""
        return [*children(self.agents[node].pid)]

    def kill(self, node: int) -> None:
        """Kills a whole node, as a power cut would: its agent and its workers."""
        victims = [*self.workers(node), self.agents[node].pid] if self.agents[node].poll() is None else []
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.agents[node].wait()

    def output(self, node: int) -> str:
        """What an agent and its workers have printed so far."""
        return (self.folder / f"agent {node}").read_text()

    def wait_for(self, what: str, seconds: float = 150.0) -> None:
        """Returns once a rank has left a file of that name."""
        deadline = time.monotonic() + seconds
        while not (self.folder / what).exists():
            ended = [agent.poll() for agent in self.agents]
            assert time.monotonic() < deadline and ended == [None] * self.nodes, (ended, self.output(0))
            time.sleep(0.05)

    def end(self, node: int, seconds: float = 150.0) -> int:
        """An agent's exit status."""
        try:
            return self.agents[node].wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"agent {node} did not end:\n{self.output(node)}") from None

    def document(self) -> dict[str, Any]:
        """What global rank 0 wrote."""
        document = json.loads(self.json.read_text())
        assert isinstance(document, dict)
        return document
