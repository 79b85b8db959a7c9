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
from verify.environment.identity import Identity
from verify.environment.watch import AFTER, OBSERVE, VELOCITY, Seen, SettingsWatch
from verify.errors import BadInput
from verify.protocols import Denoiser, Group, Observe
from verify.request import DenoiseRequest
from verify.schedule import Schedule
from verify.text import call_text
from verify.trace.caches import CacheRecord, CacheWatch
from verify.trace.watched import WatchedDenoiser, WatchedGroup
from verify.trace.window import Window

# What may differ between two ranks' environments without making their bits differ.
PRIVATE_ENVIRONMENT = frozenset({"host", "gpu_index", "gpu_uuid", "replica", "visible_gpus"})


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
        x_t: ``x_t`` after each step, or after those of a window of steps.
        final: what the loop returned.
        branches: the branches evaluated in each step, in order.
        foreign: for each step, elements of the evaluated ``x_t`` that are not those observed after the step before.
        collectives: the collectives in each step, in order; those before the loop count to step 0.
        caches: every tensor of every context.
        environment: what the rank ran on, and how the loop was run.
        seconds: the loop's duration, device included.
        followed: the schedule that the target found its loops to follow; None if it did not look.
        notes: what the target wants a reader to know.
        first: the step that ``x_t`` begins with.
        taken: steps observed, where ``x_t`` holds a window of them; None where it holds all.
        replica: which group of several the rank belongs to; None where there is one.
        identity: which code the rank ran, and variables of which it is not known whether they matter.
        settings: what was set before the loop, in each of its steps and after it.
    """

    loop: str
    rank: int
    world_size: int
    start: Float[Tensor, "tokens channels"] | None
    x_t: Float[Tensor, "kept tokens channels"]
    final: Float[Tensor, "tokens channels"]
    branches: tuple[tuple[str, ...], ...]
    foreign: tuple[int, ...]
    collectives: tuple[tuple[Collective, ...], ...]
    caches: tuple[CacheRecord, ...]
    environment: dict[str, Any]
    seconds: float = 0.0
    followed: Schedule | None = None
    notes: tuple[str, ...] = ()
    first: int = 0
    taken: int | None = None
    replica: int | None = None
    identity: Identity | None = None
    settings: Seen | None = None

    @property
    def name(self) -> str:
        """``rank 1 of local``."""
        return f"rank {self.rank} of {self.loop}" + ("" if self.replica is None else f" in replica {self.replica}")

    @property
    def steps(self) -> int:
        """Steps observed."""
        return len(self.x_t) if self.taken is None else self.taken

    @property
    def kept(self) -> range:
        """The steps whose ``x_t`` is here."""
        return range(self.first, self.first + len(self.x_t))

    @property
    def is_last(self) -> bool:
        """Whether the last step's ``x_t`` is here: with it belongs what the loop returned."""
        return self.first < self.steps <= self.kept.stop or not self.steps

    def after(self, step: int) -> Float[Tensor, "tokens channels"]:
        """``x_t`` after ``step``, which must be among those kept."""
        return self.x_t[step - self.first]

    def over(self, steps: range) -> Float[Tensor, "steps tokens channels"]:
        """``x_t`` after each of ``steps``, successive ones that must be among those kept."""
        begin = steps.start - self.first
        return self.x_t[begin : begin + len(steps)]

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

    def collective(self, name: str, number: int, step: int) -> None:
        """The rank is about to call the ``number``-th collective, from 1, of ``step``."""
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
        window: Window | None = None,
    ) -> None:
        """Recording starts here: what has been written to ``caches`` so far is forgiven.

        ``window``: the steps whose ``x_t`` to keep; all if None. The steps outside it are watched in every other way.
        """
        steps = request.schedule.steps
        self.denoiser = WatchedDenoiser(self, denoiser)
        self.group = WatchedGroup(self, group)
        self._pen = pen
        self._has_peers = group.world_size > 1
        self._steps = steps
        self._shape, self._dtype, self._device = x_0.shape, x_0.dtype, x_0.device
        self._window = window
        self._done = 0
        self.settings = SettingsWatch()
        self._last: Tensor | None = None
        self._x_t: list[Tensor] = []
        self._start: Tensor | None = None
        # One entry for each step and one for what follows the last.
        self._foreign: list[Tensor] = [self._nothing()]
        self._branches: list[list[str]] = [[]]
        self._collectives: list[list[Collective]] = [[]]
        self._caches = caches
        self._caches.begin()

    def _nothing(self) -> Tensor:
        return torch.zeros((), dtype=torch.int64, device=self._device)

    def run(self, loop: Callable[[Denoiser, Group, Observe], Any]) -> tuple[Any, float]:
        """Runs the loop and returns its result and its seconds, the device's work included."""
        synchronise(self._device)
        began = time.perf_counter()
        self.settings = SettingsWatch()
        final = loop(self.denoiser, self.group, self.observe)
        self.settings.look(self._done, AFTER)
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
        self.settings.look(step, OBSERVE)
        self._last = x_t.detach().clone(memory_format=torch.contiguous_format)
        if self._window is None or self._window.keeps(step):
            self._x_t.append(self._last)
        self._done += 1
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
        replica: int | None = None,
    ) -> Trace:
        """The trace of a loop that has returned ``final``.

        Raises:
            BadInput: the loop observed nothing, or returned no final latent.
        """
        if not self._done:
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
            x_t=torch.stack(self._x_t) if self._x_t else final.new_empty((0, *self._shape)),
            final=final.detach(),
            branches=tuple(map(tuple, self._branches)),
            foreign=tuple(torch.stack(self._foreign[:-1]).tolist()),
            collectives=tuple(map(tuple, self._collectives)),
            caches=self._caches.records(),
            environment=environment,
            seconds=seconds,
            followed=followed,
            notes=notes,
            first=0 if self._window is None else self._window.first,
            taken=None if self._window is None else self._done,
            replica=replica,
        )

    def evaluated(self, x_t: Tensor, branch: str) -> None:
        """Notes a branch evaluation, and whether its ``x_t`` is the one last observed."""
        step = self._done
        self._branches[step].append(branch)
        self.settings.look(step, VELOCITY)
        self._pen.activity(f"velocity of {branch}")
        if step == 0:
            if self._start is None:
                self._start = x_t.detach().clone()
            previous = self._start
        else:
            assert self._last is not None
            previous = self._last
        if x_t.shape == previous.shape and x_t.dtype == previous.dtype:
            self._foreign[step] += (bits_of(x_t) != bits_of(previous)).sum()
        else:
            self._foreign[step] += previous.numel()

    def collective(self, name: str, tensor: Tensor, src: int | None = None) -> None:
        """Notes a collective."""
        done = self._collectives[self._done]
        done.append(Collective(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), src))
        if self._has_peers:
            self._pen.collective(name, len(done), self._done)
        else:  # Nobody can be missing, and the peers of the reference's rank must not be counted as missing.
            self._pen.activity(call_text(name, len(done), self._done))

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


def synchronise(device: torch.device) -> None:
    """Waits until the device has done all that it was given; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
