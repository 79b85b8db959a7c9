"""What one rank saw of one loop, and the recorder that writes it down.

The recorder stands between a loop and what the loop is given. Inside the loop it copies ``x_t`` on the device and notes
names; it neither synchronises nor hashes nor moves anything to the CPU. All of that waits until the loop is over.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from verify.bits import bits_of, describe
from verify.caches import CacheRecord, CacheWatch
from verify.errors import BadInput
from verify.protocols import Denoiser, Group, Observe
from verify.request import DenoiseRequest
from verify.schedule import ALL_GATHER, BROADCAST, Schedule

# What may differ between two ranks' environments without making their bits differ.
PRIVATE_ENVIRONMENT = frozenset({"host", "gpu_index", "gpu_uuid"})


class Collective(NamedTuple):
    """One collective as a rank called it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    src: int | None = None

    def __str__(self) -> str:
        source = "" if self.src is None else f" from rank {self.src}"
        return f"{self.name} of {self.dtype} {self.shape}{source}"


@dataclass(frozen=True)
class Trace:
    """What one rank saw of one loop. Its tensors are where they were recorded until it travels to the controller's CPU.

    Attributes:
        loop: the loop's name.
        rank: this rank.
        world_size: ranks in the group.
        start: the ``x_t`` that the first branch evaluation of step 0 was given; None if this rank made none there.
        x_t: ``x_t`` after each step.
        final: what the loop returned.
        branches: the branches evaluated in each step, in order.
        foreign: for each step, elements of the evaluated ``x_t`` that are not those observed after the step before.
        collectives: the collectives in each step, in order; those before the loop count to step 0.
        caches: every tensor of every context.
        environment: what the rank ran on, and how the loop was run.
        seconds: the loop's duration, device included.
        followed: the schedule that the target found its loops to follow; None if it did not look.
        notes: what the target wants a reader to know.
    """

    loop: str
    rank: int
    world_size: int
    start: Float[Tensor, "tokens channels"] | None
    x_t: Float[Tensor, "steps tokens channels"]
    final: Float[Tensor, "tokens channels"]
    branches: tuple[tuple[str, ...], ...]
    foreign: tuple[int, ...]
    collectives: tuple[tuple[Collective, ...], ...]
    caches: tuple[CacheRecord, ...]
    environment: dict[str, Any]
    seconds: float = 0.0
    followed: Schedule | None = None
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """``rank 1 of local``."""
        return f"rank {self.rank} of {self.loop}"

    @property
    def steps(self) -> int:
        """Steps observed."""
        return len(self.x_t)

    def count(self, name: str) -> int:
        """How often collective ``name`` was called."""
        return sum(c.name == name for step in self.collectives for c in step)


class Pen(Protocol):
    """Where a recorder says what the rank is doing, for the progress bar and for whoever finds the rank dead."""

    def finished(self, step: int) -> None:
        """``step`` is done."""
        ...

    def activity(self, words: str) -> None:
        """The rank is about to do this."""
        ...


class Recorder:
    """Gives a loop its denoiser, group and observer, and keeps what passes through them."""

    def __init__(
        self,
        denoiser: Denoiser,
        group: Group,
        x_0: Float[Tensor, "tokens channels"],
        request: DenoiseRequest,
        caches: CacheWatch,
        pen: Pen,
    ) -> None:
        """Recording starts here: what has been written to ``caches`` so far is forgiven."""
        steps = request.schedule.steps
        self.denoiser = _WatchedDenoiser(self, denoiser)
        self.group = _WatchedGroup(self, group)
        self._pen = pen
        self._steps = steps
        self._shape, self._dtype, self._device = x_0.shape, x_0.dtype, x_0.device
        self._x_t: list[Tensor] = []
        self._start: Tensor | None = None
        # One entry for each step and one for what follows the last.
        self._foreign: list[Tensor] = [self._nothing()]
        self._branches: list[list[str]] = [[]]
        self._collectives: list[list[Collective]] = [[]]
        self._caches = caches
        self._caches.begin()

    @property
    def _done(self) -> int:
        """Steps observed so far."""
        return len(self._x_t)

    def _nothing(self) -> Tensor:
        return torch.zeros((), dtype=torch.int64, device=self._device)

    def run(self, loop: Callable[[Denoiser, Group, Observe], Any]) -> tuple[Any, float]:
        """Runs the loop and returns its result and its seconds, the device's work included."""
        synchronise(self._device)
        began = time.perf_counter()
        final = loop(self.denoiser, self.group, self.observe)
        self._pen.activity("finishing")
        synchronise(self._device)
        return final, time.perf_counter() - began

    def observe(self, step: int, x_t: Tensor) -> None:
        """Takes a copy of ``x_t`` on its device.

        Raises:
            BadInput: a step out of order, or an ``x_t`` that cannot be one.
        """
        if isinstance(step, bool) or not isinstance(step, int):
            raise BadInput.of("the step given to observe", step, "an int", "pass the loop's step counter")
        if step != self._done or step >= 2 * self._steps:
            expected = f"{self._done}" if self._done < 2 * self._steps else f"fewer steps than twice {self._steps}"
            raise BadInput.of("the step given to observe", step, expected, "call it once after each step, in order")
        self._require("the x_t given to observe", x_t)
        self._x_t.append(x_t.detach().clone(memory_format=torch.contiguous_format))
        self._foreign.append(self._nothing())
        self._branches.append([])
        self._collectives.append([])
        self._caches.look(step)
        self._pen.finished(step)

    def trace(
        self,
        loop: str,
        final: Any,
        seconds: float,
        environment: dict[str, Any],
        followed: Schedule | None = None,
        notes: tuple[str, ...] = (),
    ) -> Trace:
        """The trace of a loop that has returned ``final``.

        Raises:
            BadInput: the loop observed nothing, or returned no final latent.
        """
        if not self._x_t:
            raise BadInput.of(
                "the number of steps observed", self._done, f"{self._steps}", "call observe(step, x_t) after each step"
            )
        self._require("what the loop returned", final)
        # Collectives after the last step count to it: they belong to no other.
        collectives, branches = self._collectives.pop(), self._branches.pop()
        self._collectives[-1] += collectives
        self._branches[-1] += branches
        return Trace(
            loop=loop,
            rank=self.group.rank,
            world_size=self.group.world_size,
            start=self._start,
            x_t=torch.stack(self._x_t),
            final=final.detach(),
            branches=tuple(map(tuple, self._branches)),
            foreign=tuple(torch.stack(self._foreign[:-1]).tolist()),
            collectives=tuple(map(tuple, self._collectives)),
            caches=self._caches.records(),
            environment=environment,
            seconds=seconds,
            followed=followed,
            notes=notes,
        )

    def evaluated(self, x_t: Tensor, branch: str) -> None:
        """Notes a branch evaluation, and whether its ``x_t`` is the one last observed."""
        step = self._done
        self._branches[step].append(branch)
        self._pen.activity(f"velocity of {branch}")
        if step == 0:
            if self._start is None:
                self._start = x_t.detach().clone()
            previous = self._start
        else:
            previous = self._x_t[step - 1]
        if x_t.shape == previous.shape and x_t.dtype == previous.dtype:
            self._foreign[step] += (bits_of(x_t) != bits_of(previous)).sum()
        else:
            self._foreign[step] += previous.numel()

    def collective(self, name: str, tensor: Tensor, src: int | None = None) -> None:
        """Notes a collective."""
        done = self._collectives[self._done]
        done.append(Collective(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), src))
        self._pen.activity(f"{name} {len(done)} of step {self._done}")

    def between(self) -> None:
        """Notes that the collective or evaluation is over."""
        self._pen.activity("")

    def _require(self, what: str, x_t: Any) -> None:
        if not isinstance(x_t, Tensor):
            raise BadInput.of(what, describe(x_t), "a tensor", "pass the latent itself")
        if x_t.layout != torch.strided:
            raise BadInput.of(what, f"a {x_t.layout} tensor", "a dense one, as x_0", "pass x_t.to_dense()")
        if (x_t.shape, x_t.dtype, x_t.device) != (self._shape, self._dtype, self._device):
            expected = torch.empty(self._shape, dtype=self._dtype, device="meta")
            raise BadInput(
                f"{what} is {describe(x_t)} on {x_t.device}, expected {describe(expected)} on {self._device}, as x_0; "
                "keep x_t in x_0's shape, dtype and device"
            )


class _WatchedDenoiser:
    """A denoiser that reports each evaluation; everything else is the denoiser's own."""

    def __init__(self, recorder: Recorder, denoiser: Denoiser) -> None:
        self._recorder, self._denoiser = recorder, denoiser

    def __getattr__(self, name: str) -> Any:
        return getattr(self._denoiser, name)

    def velocity(self, x_t: Tensor, step: int, branch: str) -> Tensor:
        self._recorder.evaluated(x_t, branch)
        v_t = self._denoiser.velocity(x_t, step, branch)
        self._recorder.between()
        return v_t


class _WatchedGroup:
    """A group that reports each collective."""

    def __init__(self, recorder: Recorder, group: Group) -> None:
        self._recorder, self._group = recorder, group

    @property
    def rank(self) -> int:
        return self._group.rank

    @property
    def world_size(self) -> int:
        return self._group.world_size

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        self._recorder.collective(ALL_GATHER, tensor)
        gathered = self._group.all_gather(tensor)
        self._recorder.between()
        return gathered

    def broadcast(self, tensor: Tensor, src: int = 0) -> Tensor:
        self._recorder.collective(BROADCAST, tensor, src)
        self._group.broadcast(tensor, src)
        self._recorder.between()
        return tensor


def synchronise(device: torch.device) -> None:
    """Waits until the device has done all that it was given; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
