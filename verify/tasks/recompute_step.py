"""The reference one step at a time, from an ``x_t`` that was recorded.

A reference that reads its steps from the request is run over a schedule of one step. A sampler that remembers cannot be
run so: its target takes the step in a method ``resume``, from the state that was recorded. Whether that is the
reference's own step is tried wherever a loop seems to be wrong: there the reference must reproduce itself. Where the
recorded ``x_t`` is the one that the reference itself holds before the step, its own run is the answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from verify.bits import same_bits
from verify.protocols import Denoiser, State
from verify.ranks.group import Alone
from verify.ranks.rank import Rank
from verify.targets.finding import find_target
from verify.tasks.stage import Plan, Stage, reference_plan
from verify.trace.contract import plain_copy
from verify.trace.further import FurtherWatch, given_back
from verify.trace.latents import Packing, packed
from verify.trace.listener import HeardDenoiser, Listener
from verify.trace.trace import Trace


@dataclass(frozen=True)
class StepCheck:
    """One step to be computed anew.

    Attributes:
        step: which.
        ranks: the ranks that began and ended it with the same bytes, so that one check serves them all.
        x_t: what they began with.
        checker: the rank that computes it anew: not the first of ``ranks``, whose trace it was taken from.
        state: what the loop showed beside ``x_t`` before the step.
    """

    step: int
    ranks: tuple[int, ...]
    x_t: Float[Tensor, "tokens channels"]
    checker: int
    state: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Anew:
    """A step computed anew.

    Attributes:
        step: which.
        ranks: for whom.
        x_t: what the reference makes of it; None where it could not take the step alone.
        reason: why not.
    """

    step: int
    ranks: tuple[int, ...]
    x_t: Float[Tensor, "tokens channels"] | None
    reason: str = ""


def share_out(traces: Sequence[Trace]) -> list[StepCheck]:
    """Every step of every rank, shared out over the ranks; equal bytes are checked once."""
    checks = []
    for step in range(min(trace.steps for trace in traces)):
        alike: list[list[int]] = []
        for rank, trace in enumerate(traces):
            before = _before(trace, step)
            if before is None:
                continue
            for group in alike:
                other = traces[group[0]]
                theirs = _before(other, step)
                if theirs is not None and same_bits(theirs, before) and same_bits(other.x_t[step], trace.x_t[step]):
                    group.append(rank)
                    break
            else:
                alike.append([rank])
        for group in alike:
            turn = step % len(group)
            owner = group[turn]
            before = _before(traces[owner], step)
            assert before is not None
            ranks = (owner, *(r for r in group if r != owner))
            state = traces[owner].further.get(step - 1, {})
            checks.append(StepCheck(step, ranks, before, (owner + 1) % len(traces), state))
    return checks


def _before(trace: Trace, step: int) -> Tensor | None:
    return trace.start if step == 0 else trace.x_t[step - 1]


def recompute(rank: Rank, plan: Plan, checks: Sequence[StepCheck]) -> tuple[Tensor, list[Anew]]:
    """What the network is first given of this rank's initial latent, and the steps that this rank computes anew."""
    stage = Stage.of(rank, reference_plan(plan))
    own = own_checks(stage, checks)
    with stage.arithmetic():
        results = [taken_anew(stage, check) for check in own]
    return start_of(stage), results


def own_checks(stage: Stage, checks: Sequence[StepCheck]) -> list[StepCheck]:
    """The checks that are this rank's to make; called on every rank."""
    x_0: Tensor = packed(stage.prepared.x_0)
    if stage.prepared.input is not None:
        # What the first evaluation was given is not the x_t itself; that is rank 0's noise.
        stage.rank.group.broadcast(x_0)
        checks = [replace(check, x_t=x_0) if check.step == 0 else check for check in checks]
    return [check for check in checks if check.checker == stage.rank.rank]


def start_of(stage: Stage) -> Tensor:
    """What the network is first given of this rank's initial latent."""
    x_0, given = stage.prepared.x_0, stage.prepared.input
    start: Tensor = packed(x_0 if given is None else given(x_0, 0))
    return start


def confirm(rank: Rank, plan: Plan, checks: Sequence[StepCheck]) -> list[Anew] | None:
    """The same steps of the reference's own run, each computed anew from a fresh start: None for those that differ.

    Runs on rank 0; the others help the target to prepare, and return None.
    """
    plan = reference_plan(plan)
    stage = Stage.of(rank, plan)
    own = _Kept(max(check.step for check in checks))
    if rank.rank == 0:
        with stage.arithmetic():
            own.run(stage)
    results = []
    for check in checks:
        stage, anew = Stage.of(rank, plan), Stage.of(rank, plan)
        if rank.rank:
            continue
        with stage.arithmetic():
            begins = packed(stage.prepared.x_0) if check.step == 0 else own.x_t[check.step - 1]
            if same_bits(begins, check.x_t.to(begins.device)):
                # The reference has taken this step itself, whatever its sampler remembers.
                results.append(Anew(check.step, check.ranks, own.x_t[check.step]))
                continue
            again = taken_anew(stage, StepCheck(check.step, (), begins, 0, own.state.get(check.step - 1, {})))
            same = again.x_t is not None and same_bits(again.x_t, own.x_t[check.step])
            results.append(taken_anew(anew, check) if same else Anew(check.step, check.ranks, None, again.reason))
    return None if rank.rank else results


def taken_anew(stage: Stage, check: StepCheck, network: Denoiser | None = None) -> Anew:
    """One step of the reference, by the target's ``resume`` or over a schedule of one step.

    ``network``: evaluates in place of the stage's denoiser.
    """
    rank, step = stage.rank, check.step
    network = stage.prepared.denoiser if network is None else network
    rank.status.activity(f"step {step} of the reference, alone")
    target, x_t = find_target(stage.plan.target), _unpacked(stage, check.x_t.to(rank.device, copy=True))
    watch = _Kept(step, first=step)
    try:
        if hasattr(target, "resume") and step:
            denoiser = HeardDenoiser(network, watch)
            state = {name: given_back(value, rank.device) for name, value in check.state.items()}
            watch.until_reached(lambda: target.resume(denoiser, stage.request, x_t, step, state, watch.observe))
        else:
            denoiser = HeardDenoiser(network, Listener(), step)
            alone = stage.request.resolved(stage.request.schedule.of_step(step))
            shown = lambda at, x_t, state=None: watch.observe(step, x_t)  # noqa: E731
            watch.until_reached(lambda: stage.loop(denoiser, alone, x_t, Alone(), shown))
        return Anew(step, check.ranks, watch.x_t[step])
    except Exception as error:
        return Anew(step, check.ranks, None, f"{type(error).__name__}: {error}")


def _unpacked(stage: Stage, x_t: Tensor) -> Any:
    """What a loop is to be given of a packed ``x_t``."""
    packing = Packing.of(stage.prepared.x_0)
    return x_t if packing is None else packing.unpacked(x_t)


class _Reached(BaseException):
    """Ends a loop after a step; an engine's own ``except Exception`` does not hold it up."""


class _Kept(Listener):
    """Keeps what a loop shows from ``first`` up to ``last``, and ends it there."""

    def __init__(self, last: int, first: int = 0) -> None:
        self._last, self._observed = last, first
        self._further = FurtherWatch()
        self.x_t: dict[int, Tensor] = {}

    @property
    def state(self) -> Mapping[int, Mapping[str, Any]]:
        """What was shown beside ``x_t``."""
        return self._further.seen()

    def observe(self, step: int, x_t: Tensor, state: State = None) -> None:
        super().observe(step, x_t)
        self.x_t[step] = plain_copy(packed(x_t))
        self._further.look(step, state or {})
        if step >= self._last:
            raise _Reached

    def until_reached(self, run: Any) -> None:
        """Runs a loop up to the last step wanted."""
        with suppress(_Reached):
            run()

    def run(self, stage: Stage) -> None:
        """Runs the stage's loop from its noise on."""
        shows = stage.prepared.state

        def observe(step: int, x_t: Tensor, state: State = None) -> None:
            self.observe(step, x_t, {**(shows() if shows is not None else {}), **(state or {})})

        denoiser = HeardDenoiser(stage.prepared.denoiser, self)
        self.until_reached(lambda: stage.play(denoiser, stage.group, observe))
