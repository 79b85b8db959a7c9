"""Steps of the built-in reference, their draws, and decisions about other ways to take them, all in one process.

A run of real ranks takes seconds; here the draws of a request serve every engine that is judged by them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from itertools import product
from typing import Any
from unittest import mock

import torch
from inexact_targets import (
    Arithmetic,
    batched_linear,
    in_float32,
    padded_attention,
    plain_attention,
    reducing,
    replacing,
    sharded_linear,
)
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from verify.bagel import model
from verify.bagel.denoiser import BagelDenoiser, initial_noise
from verify.bits import same_bits
from verify.loops import reference
from verify.ranks.group import Alone
from verify.request import DenoiseRequest
from verify.rounding.decide import Decision, decide
from verify.rounding.deviations import Deviation, Deviations
from verify.rounding.randomised import NoiseTable, randomised
from verify.targets.builtin import _model

Step = Callable[[Any, Tensor, int], Tensor]


class Steps:
    """Some steps of a request, each from the reference's ``x_t`` before it, and K draws of each."""

    def __init__(self, request: DenoiseRequest, dtype: str, steps: Sequence[int], draws: int = 8) -> None:
        self.request = request.resolved()
        self.model = _model("tiny", dtype, None, torch.device("cpu"))
        self.denoiser = BagelDenoiser(self.model, self.request)
        self.steps, self.draws = list(steps), draws
        self.before: dict[int, Tensor] = {}
        self.after: dict[int, Tensor] = {}
        self._drawn: dict[int, list[Tensor]] = {}
        x_t = initial_noise(request, self.model.config.latent_channels)
        table = NoiseTable(torch.device("cpu"), 1)
        with torch.no_grad():
            for step in range(max(self.steps) + 1):
                after = self.take(x_t, step)
                if step in self.steps:
                    self.before[step], self.after[step], self._drawn[step] = x_t, after, []
                    for draw in range(draws):
                        with randomised(table, 1000 * step + draw):
                            self._drawn[step].append(self.take(x_t, step))
                x_t = after

    def take(self, x_t: Tensor, step: int, denoiser: Any = None, request: Any = None) -> Tensor:
        """One step of the reference's loop, by another denoiser or of another request if given."""
        inner = self.denoiser if denoiser is None else denoiser
        asked = self.request if request is None else request
        alone = asked.resolved(self.request.schedule.of_step(step))
        return reference(_At(inner, step), alone, x_t, Alone(), lambda at, x_t, state=None: None)

    def judged(self, engine: Callable[[Tensor, int], Tensor], false_alarm: float = 1e-6) -> Decision:
        """What is said of an engine that takes the steps in its own way."""
        found = []
        with torch.no_grad():
            for step in self.steps:
                taken = engine(self.before[step], step)
                if same_bits(taken, self.after[step]):
                    found.append(Deviation(step, (0,), True, {}, {}))
                    continue
                deviations = Deviations(self.after[step], taken)
                for drawn in self._drawn[step]:
                    deviations.add(drawn)
                found.append(deviations.energies(step, (0,)))
        return decide(found, false_alarm, self.draws)

    def under(self, arithmetic: Arithmetic) -> Callable[[Tensor, int], Tensor]:
        """The engine that is the reference under another arithmetic."""

        def taken(x_t: Tensor, step: int) -> Tensor:
            with arithmetic(self.denoiser):
                return self.take(x_t, step)

        return taken


class _At:
    """A denoiser whose step 0 is another's."""

    def __init__(self, inner: Any, first: int) -> None:
        self._inner, self._first = inner, first

    def velocity(self, x_t: Tensor, step: int, branch: str, **asked: Any) -> Tensor:
        velocity: Tensor = self._inner.velocity(x_t, step + self._first, branch)
        return velocity


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _without_mkldnn() -> Iterator[None]:
    # The context manager of PyTorch warns of TF32 on Intel GPUs on its way.
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)


@contextmanager
def _kernel(backend: SDPBackend) -> Iterator[None]:
    """One attention kernel alone, whatever the network asks for."""
    with mock.patch.object(model, "ATTENTION_KERNELS", [backend]), sdpa_kernel([backend]):
        yield


def _always(make: Callable[[], AbstractContextManager[object]]) -> Arithmetic:
    return lambda denoiser: make()


def _all(*arithmetics: Arithmetic) -> Arithmetic:
    """Several arithmetics at once."""

    @contextmanager
    def entered(denoiser: Any) -> Iterator[None]:
        with ExitStack() as stack:
            for arithmetic in arithmetics:
                stack.enter_context(arithmetic(denoiser))
            yield

    return entered


_plain = _always(nullcontext)
_PRODUCTS = {
    "": _plain,
    "batched rows": replacing({F.linear: batched_linear}),
    "two shards": replacing({F.linear: sharded_linear(2)}),
    "four shards": replacing({F.linear: sharded_linear(4)}),
}
_ATTENTION = {
    "": _plain,
    "math kernel": _always(lambda: _kernel(SDPBackend.MATH)),
    "padded caches": replacing({F.scaled_dot_product_attention: padded_attention}),
    "plain attention": replacing({F.scaled_dot_product_attention: plain_attention}),
}
_COMBINE = {"": _plain, "all_reduce combine": reducing}
# Every product with every attention and every combine, and what a machine may do otherwise.
ENGINES: dict[str, Arithmetic] = {
    ", ".join(filter(None, names)) or "itself": _all(*(made[name] for made, name in zip(parts, names, strict=True)))
    for parts in [(_PRODUCTS, _ATTENTION, _COMBINE)]
    for names in product(*parts)
} | {
    "two threads": _always(lambda: _threads(2)),
    "without mkldnn": _always(_without_mkldnn),
}
# Against a reference in half precision only.
WIDE = {"float32 against bfloat16": in_float32}
