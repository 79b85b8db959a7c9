"""What one rank saw of one loop: the record that checks judge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from verify.environment.identity import Identity
from verify.environment.watch import Seen
from verify.schedule import Schedule
from verify.trace.caches import CacheRecord
from verify.trace.exchange_log import Heard
from verify.trace.further import Further
from verify.trace.generators import GeneratorHistory
from verify.trace.latents import Packing
from verify.trace.payloads import Sent
from verify.trace.state import StateRecord

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
        global_rank: the rank's number among all processes; None if that is not known.
        breach: how the loop broke its contract with the suite on this rank; empty if it did not.
        asked: for each step, the steps that the network was asked for, one an evaluation, in order.
        asked_for: for each step, what else each evaluation was asked for, as the engine said it: a timestep ``t``, an
            ``expert``, and other plain values by name.
        generators: how every random generator moved; None where nobody looked.
        further: state beside ``x_t`` that the loop or its target showed, after each step and, under -1, before the
            first.
        packing: where each part lies in ``x_t``, ``start`` and ``final``, of latents of several parts; else None.
        beside: for each step, how often the network ran without having been asked through the denoiser.
        alike: the steps at which two branches had the same velocity, with the two; the reference alone notes it.
        noise: SHA-256 of the initial latent that this rank was given.
        state: what the loop could spoil, before and after it; None where nothing was looked at.
        identity: which code the rank ran, and variables of which it is not known whether they matter.
        settings: what was set before the loop, in each of its steps and after it.
        exchanges: everything that the process exchanged in each step, through the handed group or beside it; None where
            nobody listened.
        unheard: calls of the handed group under which less was exchanged than they stand for.
        equal_noise: the target says that every rank draws the same noise, so that the loop need not share it.
        world: the numbers that ``torch.distributed`` knows the ranks of the run by, in their order.
        sent: what was put into gathers and sums, beside what the network had returned; None where nobody looked.
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
    global_rank: int | None = None
    breach: str = ""
    asked: tuple[tuple[int, ...], ...] = ()
    beside: tuple[int, ...] = ()
    alike: tuple[tuple[int, str, str], ...] = ()
    noise: str = ""
    state: StateRecord | None = None
    identity: Identity | None = None
    settings: Seen | None = None
    exchanges: tuple[tuple[Heard, ...], ...] | None = None
    unheard: tuple[str, ...] = ()
    sent: Sent | None = None
    asked_for: tuple[tuple[Mapping[str, Any], ...], ...] = ()
    generators: GeneratorHistory | None = None
    further: Further = field(default_factory=dict)
    equal_noise: bool = False
    world: tuple[int, ...] = ()
    packing: Packing | None = None

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
