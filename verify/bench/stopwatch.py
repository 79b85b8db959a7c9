"""Where a loop's time goes, by CUDA events on a GPU and by the clock on a CPU; no synchronisation inside the loop."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from verify.protocols import Denoiser, Group, State
from verify.schedule import ALL_GATHER, BROADCAST
from verify.trace.listener import Listener

FORWARD = "forward"
COMBINE = "combine"


class Stopwatch:
    """Collects marked spans of one loop."""

    def __init__(self, device: torch.device) -> None:
        self._gpu = device.type == "cuda"
        self._spans: dict[str, list[tuple[Any, Any]]] = {FORWARD: [], ALL_GATHER: [], BROADCAST: [], COMBINE: []}
        self._velocities_since: Any = None

    def now(self) -> Any:
        """A moment: an event in the current stream, or a clock reading in seconds."""
        if not self._gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def add(self, name: str, began: Any) -> Any:
        """A span called ``name`` that began at ``began`` ends now; returns when that is."""
        ended = self.now()
        self._spans[name].append((began, ended))
        return ended

    def velocities_there(self, moment: Any) -> None:
        """From here on the loop may combine: an evaluation or a gather has ended."""
        self._velocities_since = moment

    def stepped(self, moment: Any) -> None:
        """The combine and the Euler step, if any were under way, have ended: something else begins."""
        if self._velocities_since is not None:
            self._spans[COMBINE].append((self._velocities_since, moment))
            self._velocities_since = None

    def between(self, began: Any, ended: Any) -> float:
        """Seconds between two moments; on a GPU only after it has been synchronised."""
        return began.elapsed_time(ended) / 1000 if self._gpu else ended - began

    def seconds(self) -> dict[str, list[float]]:
        """Every span in seconds, in order."""
        return {name: [self.between(*span) for span in spans] for name, spans in self._spans.items()}


class Timed(Listener):
    """Times evaluations and collectives: the wait for the slowest rank is part of each collective."""

    def __init__(self, watch: Stopwatch) -> None:
        self._watch = watch

    def evaluate(self, denoiser: Denoiser, x_t: Tensor, step: int, branch: str) -> Tensor:
        began = self._watch.now()
        self._watch.stepped(began)
        v_t = denoiser.velocity(x_t, step, branch)
        self._watch.velocities_there(self._watch.add(FORWARD, began))
        return v_t

    def all_gather(self, group: Group, tensor: Tensor) -> list[Tensor]:
        began = self._watch.now()
        self._watch.stepped(began)
        gathered = group.all_gather(tensor)
        self._watch.velocities_there(self._watch.add(ALL_GATHER, began))
        return gathered

    def broadcast(self, group: Group, tensor: Tensor, src: int) -> Tensor:
        began = self._watch.now()
        self._watch.stepped(began)
        group.broadcast(tensor, src)
        self._watch.add(BROADCAST, began)
        return tensor

    def observe(self, step: int, x_t: Tensor, state: State = None) -> None:
        super().observe(step, x_t)
        self._watch.stepped(self._watch.now())
