"""What a sampler does beside one evaluation of each branch at the ``x_t`` it shows, as a listener sees it.

Random generators, further state, what the network is asked for, and evaluations at points of the sampler's own. Nothing
here waits for the device while a loop runs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from verify.bits import bits_of
from verify.protocols import State
from verify.schedule import Schedule
from verify.trace.contract import plain_copy
from verify.trace.digest import digest
from verify.trace.further import POINT, Further, FurtherWatch, generators_in
from verify.trace.generators import BEFORE_EVALUATING, BEFORE_LOOP, GeneratorHistory, GeneratorWatch

Input = Callable[[Tensor, int], Tensor]
Shown = Callable[[], Mapping[str, Any]]
# More elements than this are told by their digest: a timestep has few, a prompt's embeddings many.
_FEW = 16


class SamplerWatch:
    """Watches one loop on one rank."""

    def __init__(
        self,
        schedule: Schedule,
        device: torch.device,
        network_input: Input | None = None,
        shown: Shown | None = None,
        generators: GeneratorWatch | None = None,
    ) -> None:
        """``network_input`` and ``shown``: as a target declares them. ``generators``: a watch that has begun before."""
        self._schedule, self._input, self._shown = schedule, network_input, shown
        self._generators = GeneratorWatch(device) if generators is None else generators
        self._further = FurtherWatch()
        self._began = False
        self._told: Mapping[str, Any] = {}
        self._asked: defaultdict[int, list[Mapping[str, Any]]] = defaultdict(list)
        self._points: defaultdict[int, dict[int, Tensor]] = defaultdict(dict)

    def loop_begins(self) -> None:
        """The loop is about to start."""
        self._look(BEFORE_LOOP, None, keeps=False)

    def begin_again(self) -> None:
        """What step 0 has evaluated so far was a warm-up."""
        self._began = False
        self._asked[0].clear()
        self._points[0].clear()

    def ask(self, asked: Mapping[str, Any]) -> None:
        """The next evaluation of this rank is asked for with this beside step and branch."""
        self._told = {name: plain_copy(value) if isinstance(value, Tensor) else value for name, value in asked.items()}

    def evaluating(self, step: int, keeps: bool) -> None:
        """An evaluation begins; ``keeps``: whether what is shown before the first one is kept."""
        if not self._began:
            self._look(BEFORE_EVALUATING, None, keeps)
            self._began = True
        self._asked[step].append(self._told)
        self._told = {}

    def is_further(self, step: int, earlier: int) -> bool:
        """Whether a branch that was evaluated so often in ``step`` is now evaluated at a point of the sampler's own."""
        return 0 < earlier < self._schedule.evaluations_of(step)

    def may_come_again(self, step: int, earlier: int) -> bool:
        """Whether a branch that was evaluated so often in ``step`` is to be evaluated once more."""
        return earlier < max(1, self._schedule.evaluations_of(step))

    def point(self, step: int, number: int, x_t: Tensor) -> Tensor | int:
        """Keeps where the sampler evaluates for the ``number``-th further time; elements unlike another branch's."""
        known = self._points[step].setdefault(number, plain_copy(x_t))
        if known.shape != x_t.shape or known.dtype != x_t.dtype:
            return known.numel()
        return (bits_of(known) != bits_of(x_t)).sum()

    def given(self, x_t: Tensor, step: int) -> Tensor:
        """What the network is to be given of the ``x_t`` before ``step``."""
        return x_t if self._input is None else self._input(x_t, step)

    def observe(self, step: int, state: State, keeps: bool) -> None:
        """``step`` is done. ``state``: what the loop shows beside its ``x_t``; ``keeps``: whether to keep it."""
        if keeps and self._points[step]:
            points = self._points[step].items()
            self._further.look(step, {f"{POINT}{number + 1}": x_t for number, x_t in points})
        self._points.pop(step, None)
        self._look(step, state, keeps)

    def _look(self, moment: int, state: State, keeps: bool) -> None:
        shown = {**(self._shown() if self._shown is not None else {}), **(state or {})}
        self._generators.look(moment, generators_in(shown))
        if keeps:
            self._further.look(moment, shown)

    def generators(self) -> GeneratorHistory:
        """How every generator moved."""
        return self._generators.history()

    def further(self) -> Further:
        """All that was shown beside ``x_t``."""
        return self._further.seen()

    def asked(self) -> Mapping[int, list[Mapping[str, Any]]]:
        """For each step what each evaluation was asked for, in plain values. Waits for the device."""
        return {step: [_plain(each) for each in asked] for step, asked in self._asked.items()}


def _plain(asked: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _value(each) for name, each in asked.items()}


def _value(value: Any) -> Any:
    if isinstance(value, Tensor):
        if value.numel() > _FEW:
            return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}, digest {digest(value)[:12]}"
        values = value.flatten().tolist()
        return values[0] if values and all(each == values[0] for each in values) else values
    return value if isinstance(value, (int, float, str, bool, type(None))) else str(value)
