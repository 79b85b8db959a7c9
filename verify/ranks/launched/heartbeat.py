"""How launched processes know of each other: each says twice a second where it is, in the launcher's store.

Global rank 0 reads what every process says. Every other process reads only what global rank 0 says and orders. So the
traffic grows with the number of processes and not with its square. Heartbeats have a thread of their own and wait in no
collective: a loop that is stuck does not stop them. Native code that keeps the interpreter's lock does, and its process
then looks like a dead or stopped one.
"""

from __future__ import annotations

import faulthandler
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from verify.errors import Unjudged
from verify.ranks.launched.launch import Launch
from verify.ranks.local.anonymous import AnonymousFile

# How long a process may say nothing before it counts as dead; less once another has failed, since then something is
# wrong. A host that is killed shows sooner over gloo, whose connections break.
SILENCE, SILENCE_IN_DOUBT = 15.0, 5.0
BEAT = 0.5
# Launchers start hosts one after another, and importing takes its time on a busy one.
START = 180.0
_TRY = timedelta(seconds=3)


@dataclass
class Heard:
    """What a process last said, and when that was heard here.

    Attributes:
        said: its state, step and activity; empty before its first heartbeat.
        heard: when that was, in seconds of this process's monotonic clock.
    """

    said: dict[str, Any] = field(default_factory=dict)
    heard: float = field(default_factory=time.monotonic)

    @property
    def age(self) -> float:
        """Seconds since it was heard."""
        return time.monotonic() - self.heard

    def is_silent(self, seconds: float) -> bool:
        """Whether it has said nothing for so long. Before its first heartbeat it may still be importing."""
        return self.age > (seconds if self.said else max(seconds, START))


class Heartbeat(threading.Thread):
    """One process's end: a thread of its own that speaks and listens until the process ends."""

    def __init__(self, launch: Launch, say: Callable[[], dict[str, Any]]) -> None:
        """Joins the store. ``say`` tells where this process is, in JSON values; it is called by this thread.

        Raises:
            Unjudged: the store cannot be reached.
        """
        super().__init__(name="verify-heartbeat", daemon=True)
        self.launch = launch
        self._say = say
        self._server = None
        if launch.rank == 0 and not launch.agent_store:
            self._server = self._connect(is_master=True)
        self._store = self.store("heartbeat")
        others = range(1, launch.world_size) if launch.rank == 0 else range(1)
        self.heard: dict[int, Heard] = {rank: Heard() for rank in others}
        self.exchanged = time.monotonic()
        self.broken = ""
        self.order: dict[str, Any] = {}
        self.stacks: dict[int, str] = {}
        self._said = 0
        self._soon = threading.Event()
        self._shown = False

    def _connect(self, is_master: bool = False) -> Any:
        """A client of the store, or the store itself. Short tries: the library's own pauses grow up to a minute."""
        launch, deadline = self.launch, time.monotonic() + START
        while True:
            try:
                store = dist.TCPStore(  # type: ignore[attr-defined]
                    launch.address, launch.port, launch.world_size, is_master, timeout=_TRY, wait_for_workers=False
                )
            except (RuntimeError, ValueError) as error:
                # A port that is taken stays taken; a host that does not listen yet may come to.
                if is_master or time.monotonic() > deadline:
                    what = "could not open" if is_master else "did not reach"
                    reason = str(error).strip().splitlines()[0][:200].rstrip(".")
                    raise Unjudged(
                        f"global rank {launch.rank} {what} the store at {launch.address}:{launch.port}: {reason}; "
                        "MASTER_ADDR must name the host of global rank 0 and MASTER_PORT a free, open port there"
                    ) from None
                continue
            store.set_timeout(timedelta(seconds=START))
            return store

    def store(self, purpose: str) -> Any:
        """A connection of its own to the store: one that waits in a collective keeps no other from speaking."""
        return dist.PrefixStore(f"verify/{self.launch.attempt}/{purpose}", self._connect())  # type: ignore[attr-defined]

    def run(self) -> None:
        """Speaks and listens, twice a second and whenever there is news."""
        try:
            while True:
                self._speak()
                self._listen()
                self.exchanged = time.monotonic()
                self._soon.wait(BEAT)
                self._soon.clear()
        except Exception as error:  # Whatever the store raises when it is gone.
            self.broken = str(error).strip().splitlines()[0][:200] or type(error).__name__

    def speak_soon(self) -> None:
        """There is news."""
        self._soon.set()

    def give(self, order: dict[str, Any]) -> None:
        """Global rank 0 orders: ``show`` (stacks) or ``end`` (an exit status)."""
        self.order = order
        self.speak_soon()

    def ask_for_stacks(self, ranks: Sequence[int], wait: float) -> dict[int, str]:
        """On global rank 0: the stacks of those of ``ranks`` that show them within ``wait`` seconds."""
        self.give({"show": True})
        deadline = time.monotonic() + wait
        others = [rank for rank in ranks if rank != self.launch.rank]
        while time.monotonic() < deadline and not all(rank in self.stacks for rank in others):
            time.sleep(0.05)
        own = {self.launch.rank: stacks()} if self.launch.rank in ranks else {}
        return own | {rank: self.stacks[rank] for rank in others if rank in self.stacks}

    def say_last(self) -> None:
        """Says where this process is once more before it ends; what then happens to the store no longer matters."""
        said = self._said
        deadline = time.monotonic() + 4 * BEAT
        self.speak_soon()
        # The heartbeat that is under way may have been made before the news, so the one after it must be sent too.
        while self._said < said + 2 and not self.broken and time.monotonic() < deadline:
            self.speak_soon()
            time.sleep(0.01)

    def lost(self) -> str:
        """Why this process is on its own; empty while it is not."""
        if self.broken:
            return f"the store at {self.launch.address}:{self.launch.port} is gone ({self.broken})"
        if time.monotonic() - self.exchanged > SILENCE:
            return f"the store at {self.launch.address}:{self.launch.port} does not answer"
        if self.launch.rank and self.heard[0].is_silent(SILENCE):
            return f"global rank 0 has said nothing for {SILENCE:.0f} s (dead, stopped or cut off)"
        return ""

    def silent(self, seconds: float) -> list[int]:
        """Who has said nothing for so long."""
        return [rank for rank, heard in self.heard.items() if heard.is_silent(seconds)]

    def is_in_doubt(self) -> bool:
        """Whether some process may be dead, or only slow to speak."""
        return any(
            heard.age > 3 * BEAT and not heard.is_silent(SILENCE_IN_DOUBT) and not heard.said.get("answer")
            for heard in self.heard.values()
        )

    def _speak(self) -> None:
        said = {**self._say(), "number": self._said + 1}
        if self.launch.rank == 0:
            said["order"] = self.order
        self._store.set(f"heartbeat {self.launch.rank}", json.dumps(said))
        self._said += 1
        if self.order.get("show") and not self._shown:
            self._shown = True
            self._store.set(f"stacks {self.launch.rank}", stacks())

    def _listen(self) -> None:
        known = [rank for rank, heard in self.heard.items() if heard.said]
        known += [rank for rank in self.heard if rank not in known and self._store.check([f"heartbeat {rank}"])]
        if known:
            for rank, raw in zip(known, self._store.multi_get([f"heartbeat {rank}" for rank in known]), strict=True):
                self._hear(rank, json.loads(raw))
        if self.launch.rank == 0 and self.order.get("show"):
            for rank in self.heard:
                if rank not in self.stacks and self._store.check([f"stacks {rank}"]):
                    self.stacks[rank] = self._store.get(f"stacks {rank}").decode(errors="replace")

    def _hear(self, rank: int, said: dict[str, Any]) -> None:
        if said["number"] == self.heard[rank].said.get("number"):
            return
        self.heard[rank] = Heard(said)
        if self.launch.rank and said["order"] != self.order:
            self.order = said["order"]
            self.speak_soon()


def stacks() -> str:
    """The stack of each thread of this process."""
    file = AnonymousFile("verify-stacks")
    try:
        faulthandler.dump_traceback(file.descriptor, all_threads=True)
        return file.tail(1 << 16)
    finally:
        file.close()
