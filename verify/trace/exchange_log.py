"""Whose doing each exchange of a loop was: a call of the group that the loop was handed, an evaluation, or neither.

A call of the handed group makes one exchange: its own name, as many bytes as its tensor, over as many ranks as the
group has. A group that makes others says which in an attribute, ``exchanges = {"all_gather": ("broadcast",) * 2}``, or
``()`` where none goes through ``torch.distributed``. Any other exchange passed beside the group.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from verify.protocols import Group
from verify.text import call_text
from verify.trace.exchanges import Exchange, inspecting, was_waited_for


class Heard(NamedTuple):
    """One exchange, and whose doing it was.

    Attributes:
        exchange: what was exchanged.
        call: which call of the handed group in its step it stands for, from 1; None for one that passed beside it.
        within: the call of the handed group that made it, whether or not it stands for that; empty where none did.
        evaluating: the branch whose evaluation made it; empty outside any.
        before_evaluating: whether this rank had evaluated nothing yet.
        unwaited: whether the program was given a handle to wait for, and never did.
    """

    exchange: Exchange
    call: int | None = None
    within: str = ""
    evaluating: str = ""
    before_evaluating: bool = False
    unwaited: bool = False


@dataclass(eq=False)
class _Call:
    """A call of the handed group that is not over, and how many of the exchanges due of it were heard."""

    name: str
    number: int
    step: int
    size: int
    src: int | None
    heard: int = 0


@dataclass
class _Thread(threading.local):
    call: _Call | None = None
    evaluating: str = ""


class ExchangeLog:
    """Hears every exchange of this process while a loop runs, whatever thread begins it.

    Attributes:
        heard: what was heard in each step.
    """

    def __init__(
        self, group: Group, step: Callable[[], int], beside: Callable[[Exchange, Tensor], None] = lambda e, t: None
    ) -> None:
        """Listens to nothing yet.

        Args:
            group: the one that the loop is handed.
            step: says which step the loop is in.
            beside: is told of what passes beside the group and outside any evaluation, before it does.
        """
        declared: Mapping[str, tuple[str, ...]] | None = getattr(group, "exchanges", None)
        self._declared = {name: tuple(made) for name, made in declared.items()} if declared else {}
        self._world_size = group.world_size
        self._lock = threading.Lock()
        self._thread = _Thread()
        self._open: list[_Call] = []
        self._evaluated = False
        self._step, self._beside = step, beside
        self.heard: defaultdict[int, list[Heard]] = defaultdict(list)
        self._unheard: list[str] = []

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listens while the block runs the loop."""
        with inspecting(self._hear):
            yield
            for step, of_step in self.heard.items():
                self.heard[step] = [h._replace(unwaited=not was_waited_for(h.exchange)) for h in of_step]

    @contextmanager
    def call(self, name: str, number: int, step: int, tensor: Tensor, src: int | None = None) -> Iterator[None]:
        """This thread calls the handed group: what stands for that is heard in the block."""
        call = _Call(name, number, step, tensor.nbytes, src)
        before, self._thread.call = self._thread.call, call
        with self._lock:
            self._open.append(call)
        try:
            yield
        finally:
            self._thread.call = before
            with self._lock:
                self._open.remove(call)
                # A group of one has nobody to exchange with.
                if call.heard < len(self._due(call)) and self._world_size > 1:
                    self._unheard.append(call_text(name, number, step))

    @contextmanager
    def evaluating(self, branch: str) -> Iterator[None]:
        """This thread evaluates ``branch`` in the block."""
        self._evaluated = True
        before, self._thread.evaluating = self._thread.evaluating, branch
        try:
            yield
        finally:
            self._thread.evaluating = before

    @property
    def unheard(self) -> tuple[str, ...]:
        """Calls of the handed group that made fewer exchanges than they stand for, as ``all_gather 1 of step 0``."""
        return tuple(self._unheard)

    def _hear(self, exchange: Exchange, tensors: Sequence[Tensor] = ()) -> None:
        with self._lock:
            own = self._thread.call
            # A group may exchange in a thread of its own: its caller waits meanwhile.
            calls = self._open if own is None and not self._thread.evaluating else [own] if own is not None else []
            call = next((each for each in calls if self._stands_for(exchange, each)), None)
            if call is not None:
                call.heard += 1
            number = None if call is None else call.number
            within = "" if own is None else call_text(own.name, own.number, own.step)
            heard = Heard(exchange, number, within, self._thread.evaluating, not self._evaluated)
            self.heard[self._step() if call is None else call.step].append(heard)
            if own is None and call is None and not self._thread.evaluating and tensors:
                self._beside(exchange, tensors[0])

    def _due(self, call: _Call) -> tuple[str, ...]:
        return self._declared.get(call.name, (call.name,))

    def _stands_for(self, exchange: Exchange, call: _Call) -> bool:
        due = self._due(call)
        if call.heard >= len(due) or due[call.heard] != exchange.name:
            return False
        if call.name in self._declared:
            return True
        if (exchange.size, len(exchange.ranks)) != (call.size, self._world_size):
            return False
        return call.src is None or exchange.src == exchange.ranks[call.src]
