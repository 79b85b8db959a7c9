"""Two hosts on one machine: network, host-name and mount namespaces, joined by a pair of virtual links. Needs root.

Their names do not resolve, and nothing leaves them: the pair of links is their only network. :meth:`Hosts.close`, or
the end of the ``with`` block, takes everything down.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import pytest
from launches import environment

NAMES = ("node-a", "node-b")
ADDRESSES = {4: ("10.99.0.1", "10.99.0.2"), 6: ("fd99::1", "fd99::2")}
PORT = 29500  # Free in a network that has just been made.


def missing() -> str:
    """Why there can be no hosts here; empty if there can."""
    if shutil.which("ip") is None or shutil.which("unshare") is None:
        return "ip or unshare not found: apt-get install iproute2 util-linux"
    probe = f"verify-{secrets.token_hex(3)}"
    if subprocess.run(["ip", "netns", "add", probe], capture_output=True).returncode:
        return "network namespaces are not to be had here"
    subprocess.run(["ip", "netns", "delete", probe], check=True)
    return ""


class Hosts:
    """Both hosts. Use it as a context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        tag = secrets.token_hex(3)
        self._spaces = [f"verify-{tag}-{side}" for side in "ab"]
        self.links = [f"v{tag}{side}" for side in "ab"]
        self.processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Hosts:
        try:
            for space in self._spaces:
                _ip("netns", "add", space)
            _ip("link", "add", self.links[0], "type", "veth", "peer", "name", self.links[1])
            for side, (space, link) in enumerate(zip(self._spaces, self.links, strict=True)):
                _ip("link", "set", link, "netns", space)
                _ip("-n", space, "addr", "add", f"{ADDRESSES[4][side]}/24", "dev", link)
                _ip("-n", space, "addr", "add", f"{ADDRESSES[6][side]}/64", "dev", link, "nodad")
                for name in (link, "lo"):
                    _ip("-n", space, "link", "set", name, "up")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends what still runs and takes the hosts down."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for space in self._spaces:
            subprocess.run(["ip", "netns", "delete", space], capture_output=True)

    def start(
        self, side: int, rank: int, world: int, *arguments: str, version: int = 4, variables: Mapping[str, str] = {}
    ) -> None:
        """Starts one rank on a host, as a batch system would."""
        words = shlex.join([sys.executable, "-m", "verify", *arguments])
        launch = {
            "RANK": str(rank),
            "WORLD_SIZE": str(world),
            "LOCAL_RANK": str(rank // 2),
            "MASTER_ADDR": ADDRESSES[version][0],
            "MASTER_PORT": str(PORT),
            "FOLDER": str(self.folder),
        }
        with open(self.folder / f"rank {rank}", "wb") as output:
            self.processes.append(
                subprocess.Popen(
                    ["ip", "netns", "exec", self._spaces[side], "unshare", "--uts", "sh", "-c",
                     f"hostname {NAMES[side]}; exec {words}"],
                    env=environment() | dict(launch) | dict(variables),
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
            )  # fmt: skip

    def run(self, sides: Sequence[int], *arguments: str, version: int = 4, **variables: str) -> list[int]:
        """Starts a rank on each of ``sides``, in rank order, and waits: their exit statuses."""
        for rank, side in enumerate(sides):
            self.start(side, rank, len(sides), *arguments, version=version, variables=variables)
        return self.statuses()

    def statuses(self, seconds: float = 200.0) -> list[int]:
        """The exit status of every rank that was started, in that order."""
        return [process.wait(seconds) for process in self.processes]

    def output(self, rank: int) -> str:
        """What a rank has printed."""
        return (self.folder / f"rank {rank}").read_text(errors="replace")

    def cut(self) -> None:
        """Takes the link down."""
        _ip("-n", self._spaces[0], "link", "set", self.links[0], "down")

    def slow(self, *words: str) -> None:
        """Has the link delay, lose or limit packets, in the words of ``tc``'s netem."""
        for space, link in zip(self._spaces, self.links, strict=True):
            command = ["tc", "-n", space, "qdisc", "replace", "dev", link, "root", "netem", *words]
            if subprocess.run(command, capture_output=True).returncode:
                pytest.skip("this kernel has no netem")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
