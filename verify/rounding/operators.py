"""Every operator's result of one step in 64 numbers, in the loop and in the reference under randomised rounding.

A result is projected by random signs: the sketch of a difference is the difference of the sketches, and its length is
that of the difference to about a tenth (Johnson and Lindenstrauss; count sketch). So whole results need not be kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from verify.dispatch import OperatorMode
from verify.protocols import Denoiser, State
from verify.ranks.rank import Rank
from verify.rounding.movement import Kind, kind_of
from verify.rounding.randomised import NoiseTable, randomised
from verify.rounding.resample import SEED
from verify.tasks.probe_step import current_module
from verify.tasks.recompute_step import StepCheck, taken_anew
from verify.tasks.stage import Plan, Stage, reference_plan
from verify.trace.listener import HeardDenoiser, Listener
from verify.trace.network import networks_of

BUCKETS = 64
REST = "combine and step"


@dataclass(frozen=True, order=True)
class Call:
    """One call of an operator, by what tells it apart on both sides.

    Attributes:
        part: ``velocity of gen``, or ``combine and step``.
        module: the innermost module it ran in.
        name: as PyTorch names it.
        shape: of its result.
        number: which of the calls that are the same in all of these.
    """

    part: str
    module: str
    name: str
    shape: tuple[int, ...]
    number: int


Sketches = dict[Call, Tensor]


@dataclass(frozen=True)
class StepSketches:
    """What a step was made of, in the order in which it happened.

    Attributes:
        taken: the sketches of one pass.
        drawn: those of each draw; empty on the loop's side.
    """

    taken: Sketches
    drawn: Sequence[Sketches] = field(default=())


class _Sketching(OperatorMode):
    """Sketches the result of every operator that computes something."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Sketches = {}
        self.part = REST
        self.modules: list[str] = []
        self._counts: Counter[tuple[Any, ...]] = Counter()
        self._signs: dict[int, Tensor] = {}

    def begin(self, part: str) -> None:
        """What follows belongs to ``part``, and what was noted of an earlier turn of it is forgotten."""
        self.part = part
        self.found = {call: sketch for call, sketch in self.found.items() if call.part != part}
        self._counts = Counter({key: count for key, count in self._counts.items() if key[0] != part})

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        results = func(*args, **(kwargs or {}))
        kind, name = kind_of(func)
        result = results[0] if isinstance(results, (tuple, list)) and results else results
        if kind is not Kind.EXACT and isinstance(result, Tensor) and result.is_floating_point() and result.numel():
            key = self.part, self.modules[-1] if self.modules else "", f"aten::{name}", tuple(result.shape)
            self.found[Call(*key, self._counts[key])] = self._sketch(result)
            self._counts[key] += 1
        return results

    def _sketch(self, result: Tensor) -> Tensor:
        flat = result.detach().flatten().double()
        padded = torch.nn.functional.pad(flat, (0, -flat.numel() % BUCKETS))
        if padded.numel() not in self._signs:
            generator = torch.Generator().manual_seed(padded.numel())
            signs = torch.randint(0, 2, (padded.numel(),), generator=generator, dtype=torch.int8) * 2 - 1
            self._signs[padded.numel()] = signs.to(padded.device)
        return (padded * self._signs[padded.numel()]).view(-1, BUCKETS).sum(0)


class _Parts(Listener):
    """Tells a sketch which part of a step runs, in one step of a loop or in the only one."""

    def __init__(self, sketching: _Sketching, network: Any, step: int | None = None) -> None:
        self._sketching, self._network, self._step = sketching, network, step

    def evaluate(self, denoiser: Denoiser, x_t: Tensor, step: int, branch: str) -> Tensor:
        if self._step not in (None, step):
            return denoiser.velocity(x_t, step, branch)
        self._sketching.begin(f"velocity of {branch}")
        eager = getattr(denoiser, "eager", denoiser)
        try:
            with current_module(self._network) as self._sketching.modules:
                return eager.velocity(x_t, step, branch)
        finally:
            self._sketching.modules = []
            self._sketching.begin(REST)


class _Enough(BaseException):
    """Ends a loop after the step in question."""


def sketch_loop(rank: Rank, plan: Plan, wanted: int) -> StepSketches:
    """What the plan's loop does in step ``wanted`` on this rank, the loop being run again up to it."""
    stage = Stage.of(rank, plan)
    sketching = _Sketching()
    parts = _Parts(sketching, next(networks_of(stage.prepared.denoiser), None), wanted)

    def observe(step: int, x_t: Tensor, state: State = None) -> None:
        if step == wanted:
            raise _Enough
        if step == wanted - 1:
            sketching.begin(REST)

    with suppress(_Enough), stage.arithmetic(), sketching:
        stage.play(HeardDenoiser(stage.prepared.denoiser, parts), stage.group, observe)
    return StepSketches(_on_cpu(sketching.found))


def sketch_reference(rank: Rank, plan: Plan, check: StepCheck, draws: int) -> StepSketches | None:
    """What the reference does in the same step, once as it is and ``draws`` times under randomised rounding; rank 0."""
    stage = Stage.of(rank, reference_plan(plan))
    if rank.rank != 0:
        return None
    table = NoiseTable(rank.device, SEED)

    def one(draw: int | None) -> Sketches:
        sketching = _Sketching()
        network = getattr(stage.prepared.denoiser, "eager", stage.prepared.denoiser)
        parts = _Parts(sketching, next(networks_of(stage.prepared.denoiser), None))
        with ExitStack() as modes:
            # The mode entered last calls the one before it: what is sketched has been moved.
            if draw is not None:
                modes.enter_context(randomised(table, hash((SEED, check.step, draw))))
            modes.enter_context(sketching)
            taken_anew(stage, check, HeardDenoiser(network, parts))
        return _on_cpu(sketching.found)

    with stage.arithmetic():
        return StepSketches(one(None), [one(draw) for draw in range(draws)])


def _on_cpu(found: Sketches) -> Sketches:
    return {call: sketch.cpu() for call, sketch in found.items()}
