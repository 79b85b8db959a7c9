"""A recorder at work on one rank, with everything that it is given at hand."""

from __future__ import annotations

from typing import Any

import torch
from in_threads import LinearDenoiser, Notes
from torch import Tensor
from traces import CHANNELS, ELEMENTS, STEPS, TOKENS, small_request

from verify.ranks.group import Alone
from verify.request import DenoiseRequest
from verify.trace.caches import CacheWatch
from verify.trace.recorder import Recorder
from verify.trace.trace import Trace
from verify.trace.window import Window

REQUEST = small_request()


class Bench:
    """A recorder with a loop's three things at hand."""

    def __init__(
        self, request: DenoiseRequest = REQUEST, x_0: Tensor | None = None, window: Window | None = None
    ) -> None:
        self.x_0 = torch.arange(float(ELEMENTS)).view(TOKENS, CHANNELS) if x_0 is None else x_0
        self.inner = LinearDenoiser(request.branches)
        self.status = Notes()
        caches = {branch: {"context": tensor} for branch, tensor in self.inner.contexts.items()}
        self.recorder = Recorder(self.inner, Alone(), self.x_0, request, CacheWatch(caches), self.status, window)
        self.denoiser, self.group, self.observe = self.recorder.denoiser, self.recorder.group, self.recorder.observe

    def rest(self, start: int, x_t: Tensor | None = None) -> None:
        """Observes the steps that are left."""
        for step in range(start, STEPS):
            self.observe(step, self.x_0 if x_t is None else x_t)

    def trace(self, final: Any = None) -> Trace:
        return self.recorder.trace("mine", self.x_0 if final is None else final, 0.5, {"torch": "here"})
