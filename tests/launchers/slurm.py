"""A Slurm of this machine's own, from the distribution's packages: set up in a folder, taken down without a trace.

One controller and several ``slurmd``, each with a node name of its own. ``python slurm.py NODES COMMAND...`` runs a
command with ``srun`` and ``sinfo`` pointed at such a cluster; tests use :class:`Slurm`. Needs root, for ``munged``.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "scontrol", "scancel")
PACKAGES = "slurm-wlm munge"
_CPUS = 8  # More than there are: steps are not to wait for each other.
_START_SECONDS = 60.0


def missing() -> str:
    """Why there can be no cluster here; empty if there can."""
    lacking = [name for name in PROGRAMS if shutil.which(name) is None]
    if lacking:
        return f"{', '.join(lacking)} not found: apt-get install {PACKAGES}"
    return "" if os.getuid() == 0 else "munged and slurmctld need root here"


class Slurm:
    """A cluster. Use it as a context manager."""

    def __init__(self, nodes: int = 2, time_limit: str = "INFINITE") -> None:
        self.nodes = [f"node{number}" for number in range(1, nodes + 1)]
        self.folder = Path(tempfile.mkdtemp(prefix="verify-slurm-"))
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._configure(time_limit)

    @property
    def environment(self) -> dict[str, str]:
        """What makes Slurm's commands speak to this cluster."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def _configure(self, time_limit: str) -> None:
        folder, host = self.folder, socket.gethostname()
        folder.chmod(0o755)  # munged refuses a socket that nobody else may reach.
        (folder / "munge.key").write_bytes(secrets.token_bytes(128))
        (folder / "munge.key").chmod(0o400)
        controller, *ports = _free_ports(1 + len(self.nodes))
        lines = [
            "ClusterName=verify",
            f"SlurmctldHost={host}(127.0.0.1)",
            f"SlurmctldPort={controller}",
            "SlurmUser=root",
            "AuthType=auth/munge",
            f"AuthInfo=socket={folder / 'munge.socket'}",
            f"StateSaveLocation={folder / 'state'}",
            f"SlurmctldPidFile={folder / 'slurmctld.pid'}",
            f"SlurmdPidFile={folder}/%n.pid",
            f"SlurmdSpoolDir={folder}/spool.%n",
            "ProctrackType=proctrack/linuxproc",
            "TaskPlugin=task/none",
            "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_CPU",
            "SlurmdParameters=config_overrides",
            "ReturnToService=2",
            "MpiDefault=none",
            "KillWait=5",
            "MinJobAge=2",
            *(
                f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={_CPUS} RealMemory=1000"
                for name, port in zip(self.nodes, ports, strict=True)
            ),
            f"PartitionName=all Nodes=ALL Default=YES MaxTime={time_limit} OverTimeLimit=0 State=UP",
        ]
        (folder / "state").mkdir()
        (folder / "slurm.conf").write_text("\n".join(lines) + "\n")

    def __enter__(self) -> Slurm:
        try:
            folder = self.folder
            self._start("munged", "--foreground", "--force", f"--key-file={folder / 'munge.key'}",
                        f"--socket={folder / 'munge.socket'}", f"--pid-file={folder / 'munged.pid'}",
                        f"--seed-file={folder / 'munge.seed'}", f"--log-file={folder / 'munged.log'}")  # fmt: skip
            _wait((folder / "munge.socket").exists, "munged", self.log)
            self._start("slurmctld", "-D", "-c")
            for name in self.nodes:
                self._start("slurmd", "-D", "-N", name)
            _wait(self._all_idle, "every node", self.log)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def _start(self, name: str, *words: str) -> None:
        with open(self.folder / "log", "ab") as log:
            program = shutil.which(name)
            assert program is not None
            self._daemons.append(
                subprocess.Popen([program, *words], env=os.environ | self.environment, stdout=log, stderr=log)
            )

    def _all_idle(self) -> bool:
        return self.run("sinfo", "-h", "-N", "-t", "idle", "-o", "%N").split() == self.nodes

    def log(self) -> str:
        """The end of what the daemons have printed."""
        return (self.folder / "log").read_text(errors="replace")[-4000:]

    def run(self, *words: str) -> str:
        """What one of Slurm's commands prints."""
        done = subprocess.run(words, env=os.environ | self.environment, capture_output=True, text=True, timeout=60)
        return done.stdout

    def stop(self) -> None:
        """Ends the daemons and what they run, and removes the folder."""
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            self.run("scancel", "--signal=KILL", "--full", "--user=root")
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in reversed(self._daemons):
            try:
                daemon.wait(15)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _wait(condition: object, what: str, log: object) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not condition():  # type: ignore[operator]
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what} did not come up:\n{log()}")  # type: ignore[operator]
        time.sleep(0.2)


if __name__ == "__main__":
    if reason := missing():
        sys.exit(reason)
    with Slurm(int(sys.argv[1])) as cluster:
        sys.exit(subprocess.run(sys.argv[2:], env=os.environ | cluster.environment).returncode)
