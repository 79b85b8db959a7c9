"""CUDA graphs: a branch's forward pass recorded once and replayed, so that no kernel waits to be launched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from verify.bagel.denoiser import BagelDenoiser
from verify.bagel.model import Context
from verify.bits import same_bits

Work = Callable[[], Tensor]
_WARM_UP = 1


class Replay(Protocol):
    """A recorded forward pass."""

    def __call__(self) -> Tensor:
        """Runs it on what its inputs hold now; the result is the same tensor each time, overwritten."""
        ...


Capture = Callable[[Work], Replay]


class Recording:
    """The forward pass of every branch of one denoiser, recorded once, and the memory that it reads."""

    def __init__(
        self, denoiser: BagelDenoiser, x_0: Float[Tensor, "tokens channels"], capture: Capture | None = None
    ) -> None:
        """Records every branch of ``denoiser``.

        Args:
            denoiser: whose forward passes.
            x_0: a latent of the shape, dtype and device that the loop will hand over.
            capture: what records; :func:`captured` if left out.
        """
        self._denoiser = denoiser
        self.x_t, self.time = x_0.clone(), denoiser.time_embedding(0).clone()
        self.contexts = dict(denoiser.contexts)
        self._reads = _addresses(denoiser)
        record = captured if capture is None else capture
        self.replays = {branch: record(self._work(branch)) for branch in denoiser.contexts}

    def _work(self, branch: str) -> Work:
        return lambda: self._denoiser.velocity_at(self.x_t, self.time, branch)

    def lend(self, denoiser: BagelDenoiser, x_0: Float[Tensor, "tokens channels"]) -> bool:
        """Whether it computes what ``denoiser`` does, once this has put that one's contexts into its own memory.

        It does for a denoiser that was made anew over the same weights for a request of the same form.
        """
        own, now = self.contexts, denoiser.contexts
        alike = (
            own.keys() == now.keys()
            and _form(x_0) == _form(self.x_t)
            and all(_context_form(own[branch]) == _context_form(now[branch]) for branch in own)
            and _addresses(denoiser) == self._reads
            and same_bits(denoiser.places, self._denoiser.places)
        )
        if alike:
            for branch, context in own.items():
                context.keys.copy_(now[branch].keys)
                context.values.copy_(now[branch].values)
            denoiser.contexts = dict(own)
        return alike


class GraphedDenoiser:
    """The built-in denoiser with each branch's forward pass replayed from a graph.

    A graph reads and writes fixed memory, so ``x_t`` and the embedding of the step's time are copied into place before
    a replay, and the velocity is copied out after it. Contexts are frozen: the graphs read them where they are.

    Attributes:
        eager: the denoiser whose forward passes were recorded, for whoever wants to see their operators. Everything
            but :meth:`velocity` is its own.
    """

    def __init__(self, denoiser: BagelDenoiser, recording: Recording) -> None:
        self.eager = denoiser
        self._recording = recording

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["eager"], name)

    def velocity(
        self, x_t: Float[Tensor, "tokens channels"], step: int, branch: str
    ) -> Float[Tensor, "tokens channels"]:
        """As :meth:`BagelDenoiser.velocity`."""
        self._recording.x_t.copy_(x_t)
        self._recording.time.copy_(self.eager.time_embedding(step))
        return self._recording.replays[branch]().clone()


def _addresses(denoiser: BagelDenoiser) -> tuple[int, ...]:
    """Where the weights lie that a graph reads."""
    return tuple(tensor.data_ptr() for tensor in (*denoiser.model.parameters(), *denoiser.model.buffers()))


def _form(tensor: Tensor) -> tuple[object, ...]:
    return tensor.shape, tensor.dtype, tensor.device


def _context_form(context: Context) -> tuple[object, ...]:
    return _form(context.keys), _form(context.values), context.position


def captured(work: Work) -> Replay:
    """Records ``work`` as a CUDA graph, after running it on a side stream as PyTorch's notes on CUDA graphs ask.

    Raises:
        RuntimeError: an operation of ``work`` cannot be recorded.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_WARM_UP):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # Threads of the communication library may call CUDA meanwhile; only this thread's calls are to be recorded.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        output = work()

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay


class Graphs:
    """The recording of the request last prepared: a request is prepared for each loop, and recorded once."""

    def __init__(self) -> None:
        self._kept: Recording | None = None

    def if_equal(
        self, denoiser: BagelDenoiser, x_0: Float[Tensor, "tokens channels"], steps: int
    ) -> tuple[BagelDenoiser | GraphedDenoiser, str]:
        """The denoiser replayed from graphs, or as it is where none is recorded or a bit differs; and what to tell."""
        told = "forward passes are replayed from CUDA graphs, whose bits were compared with eager ones"
        with torch.no_grad():
            if self._kept is not None and self._kept.lend(denoiser, x_0):
                return GraphedDenoiser(denoiser, self._kept), told
            self._kept = None  # Its memory goes before the next one is recorded.
            try:
                recording = Recording(denoiser, x_0)
                graphed = GraphedDenoiser(denoiser, recording)
                others = unlike(denoiser, graphed, x_0, steps)
            except RuntimeError as error:
                return denoiser, f"forward passes run eagerly: no CUDA graph was recorded: {error}"[:300]
        if others:
            return denoiser, f"forward passes run eagerly: CUDA graphs gave other bits for {', '.join(others)}"
        self._kept = recording
        return graphed, told


def unlike(
    denoiser: BagelDenoiser, graphed: GraphedDenoiser, x_0: Float[Tensor, "tokens channels"], steps: int
) -> list[str]:
    """The branches and steps at which a replay gives other bits than the eager forward pass; none if all are equal.

    The first, a middle and the last step are compared, each at another ``x_t``: a graph that went on reading the
    latent or the time that it was recorded with would show.
    """
    found = []
    for scale, step in enumerate(sorted({0, steps // 2, steps - 1}), 1):
        x_t = x_0 * (1.0 / scale)
        for branch in denoiser.contexts:
            if not same_bits(denoiser.velocity(x_t, step, branch), graphed.velocity(x_t, step, branch)):
                found.append(f"{branch} at step {step}")
    return found
