"""The listener that writes a trace.

Inside the loop it copies ``x_t`` on the device and notes names; it neither synchronises nor hashes nor moves anything
to the CPU. All of that waits until the loop is over. A loop that breaks its contract is not interrupted: what it did
wrong is noted and judged, so that no ``except`` of its own can swallow it and no other rank is left waiting.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from verify.environment.watch import AFTER, OBSERVE, VELOCITY, SettingsWatch
from verify.errors import BadInput
from verify.protocols import Denoiser, Group, Observe, State, SummingGroup
from verify.request import DenoiseRequest
from verify.schedule import ALL_GATHER, ALL_REDUCE, BROADCAST, Schedule
from verify.text import call_text
from verify.trace.caches import CacheWatch
from verify.trace.contract import caller, checked_step, plain_copy
from verify.trace.device import synchronise
from verify.trace.digest import digest
from verify.trace.exchange_log import ExchangeLog
from verify.trace.exchanges import Exchange
from verify.trace.latents import LatentsAsShown, packed
from verify.trace.listener import HeardDenoiser, HeardGroup, Listener
from verify.trace.network import NetworkWatch
from verify.trace.payloads import Cast, PayloadWatch
from verify.trace.points import AlikeWatch, PointsWatch
from verify.trace.sampling import SamplerWatch
from verify.trace.share import Share
from verify.trace.state import StateWatch
from verify.trace.status import Status
from verify.trace.trace import Collective, Trace
from verify.trace.window import Window


class Recorder(Listener):
    """Gives a loop its denoiser, group and observer, and keeps what passes through them."""

    def __init__(
        self,
        denoiser: Denoiser,
        group: Group,
        x_0: Float[Tensor, "tokens channels"],
        request: DenoiseRequest,
        caches: CacheWatch,
        status: Status,
        window: Window | None = None,
        state: StateWatch | None = None,
        first_state: Mapping[str, str] | None = None,
        sends: Cast | None = None,
        sampler: SamplerWatch | None = None,
        share: Share | None = None,
    ) -> None:
        """Recording starts here: what has been written to ``caches`` so far is forgiven.

        ``window``: the steps whose ``x_t`` to keep; all if None. The steps outside it are watched in every other way.
        ``state``: what else the loop must leave as it is; ``first_state``: its digests before the first loop.
        ``sends``: what the target says its loops make of a velocity before they gather it or sum it.
        ``sampler``: watches what the target says of its sampler; one that does nothing special if None. ``share``: of
        this rank; all of ``x_t`` if None.
        """
        self._latents, x_0 = LatentsAsShown(x_0), packed(x_0)
        self.denoiser = HeardDenoiser(denoiser, self)
        self.group = HeardGroup(group, self)
        self._status = status
        self._has_peers = group.world_size > 1
        self._steps = request.schedule.steps
        self._share = share or Share(x_0.shape)
        self._shape, self._dtype, self._device = self._share.part(x_0).shape, x_0.dtype, x_0.device
        self._noise = digest(x_0)
        self._lock = threading.RLock()
        self._done = self._evaluating = 0
        self._thread: int | None = None
        self.settings = SettingsWatch()
        self._window, self._breach = window, ""
        self._x_t: list[Tensor] = []
        self._branches: defaultdict[int, list[str]] = defaultdict(list)
        self._asked: defaultdict[int, list[int]] = defaultdict(list)
        self._collectives: defaultdict[int, list[Collective]] = defaultdict(list)
        self._alike = AlikeWatch()
        self._network = NetworkWatch(denoiser)
        self._exchanges = ExchangeLog(group, self._step, self._passed)
        self._payloads = PayloadWatch(sends)
        self._state, self._first_state = state, first_state
        self._sampler = SamplerWatch(request.schedule, x_0.device) if sampler is None else sampler
        self._points = PointsWatch(x_0.device, self._sampler, self._share.shown)
        self._caches = caches
        self._caches.begin()

    def _step(self) -> int:
        """The step that the loop is in: after its evaluation, where that was made ahead of time."""
        return max(self._done, self._evaluating)

    def run(self, loop: Callable[[Denoiser, Group, Observe], Any]) -> tuple[Any, float]:
        """Runs the loop and returns its result and its seconds, the device's work included."""
        synchronise(self._device)
        with self._network.watching(), self._exchanges.listening():
            began = time.perf_counter()
            self.settings = SettingsWatch()
            self._sampler.loop_begins()
            final = loop(self.denoiser, self.group, self.observe)
            self.settings.look(self._done, AFTER)
            self._status.activity("finishing")
            synchronise(self._device)
            return final, time.perf_counter() - began

    def evaluate(self, denoiser: Denoiser, x_t: Tensor, step: int, branch: str) -> Tensor:
        """Notes a branch evaluation, and whether its ``x_t`` is the one last observed.

        The step is the one that the loop is in, whatever it asks the network for; an evaluation for a later step is one
        made ahead of time, as loops do that overlap a callback with the next evaluation.
        """
        with self._lock:
            at = step if isinstance(step, int) and self._done < step < self._steps else self._done
            self._evaluating, self._thread = at, threading.get_ident()
            if at == 0 and not self._sampler.may_come_again(0, self._branches[0].count(branch)):
                self._begin_again()
            self.settings.look(at, VELOCITY)
            self._sampler.evaluating(at, self._window is None or self._window.first == 0)
            earlier = self._branches[at].count(branch)
            self._branches[at].append(branch)
            self._asked[at].append(step)
            # After a breach nothing observed is worth comparing with.
            self._points.evaluated(at, packed(x_t), earlier, at > self._done, not self._breach)
            self._status.activity(f"velocity of {branch}")
        if self._state is not None:
            self._state.entering()
        with self._network.asked(), self._exchanges.evaluating(branch):
            v_t = denoiser.velocity(x_t, step, branch)
        if self._state is not None:
            self._state.left()
        if isinstance(v_t, (Tensor, Mapping)):
            with self._lock:
                self._payloads.computed(at, branch, v_t)
            if not self._has_peers:
                self._alike.computed(at, branch, packed(v_t))
        self._status.activity("")
        return v_t

    def _begin_again(self) -> None:
        """What step 0 has evaluated so far was a warm-up: a branch comes again, or the noise is shared only now."""
        self._branches[0].clear()
        self._asked[0].clear()
        self._sampler.begin_again()
        self._points.begin_again()
        self._alike.begin_again()

    def all_gather(self, group: Group, tensor: Tensor) -> list[Tensor]:
        with self._called(ALL_GATHER, tensor):
            return group.all_gather(tensor)

    def all_reduce(self, group: SummingGroup, tensor: Tensor) -> Tensor:
        with self._called(ALL_REDUCE, tensor):
            return group.all_reduce(tensor)

    def broadcast(self, group: Group, tensor: Tensor, src: int) -> Tensor:
        with self._called(BROADCAST, tensor, src):
            group.broadcast(tensor, src)
        return tensor

    @contextmanager
    def _called(self, name: str, tensor: Tensor, src: int | None = None) -> Iterator[None]:
        with self._lock:
            step = self._step()
            called = self._collectives[step]
            if name == BROADCAST and step == 0 and not called and self._has_peers:
                self._begin_again()
            called.append(Collective(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), src))
            if self._has_peers:
                self._status.collective(name, len(called), step)
            else:  # Nobody can be missing, and the peers of the reference's rank must not be counted as missing.
                self._status.activity(call_text(name, len(called), step))
            if name in (ALL_GATHER, ALL_REDUCE):
                self._payloads.gathered(step, tensor, name)
            call = self._exchanges.call(name, len(called), step, tensor, src)
        with call:
            yield
        self._status.activity("")

    def _passed(self, exchange: Exchange, tensor: Tensor) -> None:
        """Something is about to pass beside the group."""
        if self._share.sends_velocity(exchange):
            self._payloads.gathered(self._step(), tensor, exchange.name)

    @property
    def step_now(self) -> int:
        """The step that the loop is in."""
        return self._done

    def asked(self, branch: str, asked: Mapping[str, Any]) -> None:
        """Notes what the next evaluation is asked for."""
        self._sampler.ask(asked)

    def observe(self, step: int, x_t: Tensor, state: State = None) -> None:
        """Takes a copy of ``x_t`` on its device. A wrong step or ``x_t`` is noted; recording ends there.

        Raises:
            BadInput: the loop does not end: it has taken twice its steps.
        """
        with self._lock:
            if self._done >= 2 * self._steps:
                expected = f"fewer steps than twice {self._steps}"
                raise BadInput.of("the step given to observe", step, expected, "end the loop")
            if self._breach:
                self._done += 1
                return
            try:
                checked_step(step, self._done)
                x_t, state = self._latents.without_others(x_t, state)
                x_t = self._latents.checked("the x_t given to observe", x_t, self._shape)
            except BadInput as breach:
                self._breach = f"{breach} ({caller()})"
                self._done += 1
                return
            if self._thread in (None, threading.get_ident()):  # A callback's own thread computes nothing.
                self.settings.look(self._done, OBSERVE)
            shown = plain_copy(x_t)
            if keeps := self._window is None or self._window.keeps(self._done):
                self._x_t.append(shown)
            self._sampler.observe(self._done, state, keeps)
            self._network.step(self._done)
            self._done += 1
            self._points.observed(self._done - 1, shown)
            self._caches.look(self._done - 1)
            if self._state is not None:
                self._state.look(self._done - 1)
            self._status.finished(self._done - 1)

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
        """The trace of a loop that has returned ``final``; a breach of the loop's contract is told in it."""
        steps = len(self._x_t) if self._breach and self._window is None else self._done
        if not self._breach:
            try:
                if not steps:
                    raise BadInput.of(
                        "the number of steps observed", 0, f"{self._steps}", "call observe(step, x_t) after each step"
                    )
                final = self._latents.returned(final, self._share.returned)
            except BadInput as breach:
                self._breach = str(breach)
        if self._breach:
            final = torch.zeros(self._shape, dtype=self._dtype) if self._points.last is None else self._points.last

        def by_step(noted: defaultdict[int, list[Any]]) -> tuple[tuple[Any, ...], ...]:
            """What follows the last step is counted to it: it belongs to no other."""
            late = [each for step in sorted(noted) if step >= steps for each in noted[step]]
            return tuple((*noted[step], *(late if step == steps - 1 else ())) for step in range(steps))

        return Trace(
            loop=loop,
            rank=self.group.rank,
            world_size=self.group.world_size,
            start=self._points.start,
            x_t=torch.stack(self._x_t) if self._x_t else final.new_empty((0, *self._shape)),
            final=plain_copy(final),
            branches=by_step(self._branches),
            foreign=self._points.foreign(steps),
            collectives=by_step(self._collectives),
            caches=self._caches.records(),
            environment=environment,
            seconds=seconds,
            followed=followed,
            notes=notes,
            first=0 if self._window is None else self._window.first,
            taken=None if self._window is None else steps,
            replica=replica,
            breach=self._breach,
            asked=by_step(self._asked),
            asked_for=by_step(defaultdict(list, self._sampler.asked())),
            generators=self._sampler.generators(),
            further=self._sampler.further(),
            packing=self._latents.packing,
            beside=self._network.counts(steps),
            alike=self._alike.seen(),
            noise=self._noise,
            state=None if self._state is None else self._state.record(self._first_state),
            settings=self.settings.seen(),
            exchanges=by_step(self._exchanges.heard),
            unheard=self._exchanges.unheard,
            sent=self._payloads.record(),
        )
