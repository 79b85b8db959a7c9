"""How a fault is written and registered.

A fault is a loop: ``local`` or another version, with something replaced that the loop is given. Neither loops nor model
know of it. README.md in this folder has the recipe.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any, cast

from torch import Tensor

from verify.checks.records import CHECKS
from verify.errors import BadInput
from verify.expected import kind_of
from verify.loops import LOOPS
from verify.protocols import Denoiser, Group, Loop, Observe, State
from verify.request import DenoiseRequest
from verify.runner.requests import ONE
from verify.schedule import Schedule
from verify.targets.protocol import Target, default_loops
from verify.trace.listener import Asking

UNKNOWN = "unknown"
# What any engine's loop is given. Networks, guidance and schedules are each engine's own, and so are faults of theirs.
OF_ANY_ENGINE = ("loop", "group", "noise", "environment", "ending")
# What can catch a fault: a check, or the report of ranks that did not end.
CATCHERS = (*CHECKS, UNKNOWN)
BEFORE = -1


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One injectable bug. Written as ``@fault(...)`` above the function that breaks a loop's :class:`Wiring`.

    Attributes:
        source: the public report that it comes from.
        breaks: loop, denoiser, combine, schedule, cache, group, noise, environment or ending.
        caught_by: the check that must fail, or ``unknown`` for a loop that cannot end.
        step: the step at which it strikes; -1 before step 0; None where no step applies.
        rank: the rank that it strikes; None for every rank.
        or_by: the check that must fail if the loop ends although ``caught_by`` is ``unknown``, as it may over NCCL. If
            this is empty, such an end is a miss.
        or_rank: the rank that ``or_by`` must name; None for any.
        base: the loop version that it breaks.
        image: whether it needs image guidance.
        least_ranks: the smallest world size that it needs.
        extra_ranks: how many ranks it needs beyond the number of branches.
        requests: the set of requests that shows it, as in :mod:`verify.runner.requests`.
        stuck_in: for a fault that hangs, the collective that the report must name: ranks wait in it for one that never
            joins, or die of what another rank sent.
        lasting: whether it changes the process for good, so that its ranks must be replaced.
        name: of the function.
        summary: the first line of the function's docstring.
        loop_reference: the value that ``--loop`` takes.
        target: the small engine that it is written for, a value of ``--target``; empty for the built-in one.
        ranks: the numbers of ranks that such a fault can be run on.
    """

    source: str
    breaks: str
    caught_by: str
    step: int | None = BEFORE
    rank: int | None = None
    or_by: str = ""
    or_rank: int | None = None
    base: str = "local"
    image: bool = False
    least_ranks: int = 2
    extra_ranks: int = 0
    requests: str = ONE
    stuck_in: str = ""
    lasting: bool = False
    target: str = ""
    ranks: tuple[int, ...] = ()
    name: str = ""
    summary: str = ""
    loop_reference: str = ""

    def __call__(self, break_it: Callable[[Wiring], None]) -> Loop:
        """Registers what ``break_it`` does to a loop's wiring as this fault, and turns it into that loop.

        Raises:
            BadInput: the fault cannot be registered.
        """
        self._check(break_it)

        @wraps(break_it)
        def broken(denoiser: Denoiser, request: DenoiseRequest, x_0: Tensor, group: Group, observe: Observe) -> Tensor:
            if self.target:
                raise BadInput.of(f"the target of {name}", "builtin", self.target, f"add --target {self.target}")
            # ``local`` needs a rank for each branch.
            fits = self.base != "local" or len(request.branches) == group.world_size
            loop = LOOPS[self.base if fits else "round_robin"]
            return _broken(break_it, Wiring(loop, denoiser, request, x_0, group, observe))

        def in_loops_of(target: Target) -> Loop:
            loop = loop_to_break(target, self.base)
            if target.name == "builtin" or loop is None:
                return broken

            def broken_there(
                d: Denoiser, request: DenoiseRequest, x_0: Tensor, group: Group, observe: Observe
            ) -> Tensor:
                return _broken(break_it, Wiring(target.loops[loop], d, request, x_0, group, observe))

            return cast(Loop, broken_there)

        # Callers look at the signature: it must be the loop's, not the fault's.
        del broken.__wrapped__
        broken.in_loops_of = in_loops_of  # type: ignore[attr-defined]
        summary = str(break_it.__doc__).strip().splitlines()[0]
        name, reference = break_it.__name__, _reference(break_it)
        FAULTS[name] = replace(self, name=name, summary=summary, loop_reference=reference)
        return broken

    def _check(self, break_it: Callable[[Wiring], None]) -> None:
        name = break_it.__name__
        if name in FAULTS and FAULTS[name].loop_reference != _reference(break_it):
            raise BadInput.of("the name of a fault", name, "one that no other fault has", "rename it")
        if self.caught_by not in CATCHERS:
            raise BadInput.of(f"caught_by of {name}", self.caught_by, f"one of {', '.join(CATCHERS)}", "choose one")
        if self.or_by and (self.or_by not in CHECKS or self.caught_by != UNKNOWN):
            checks = f"one of {', '.join(CHECKS)}, beside caught_by={UNKNOWN!r}"
            raise BadInput.of(f"or_by of {name}", self.or_by, checks, "choose one or leave it out")
        if not (break_it.__doc__ or "").strip():
            raise BadInput.of(f"the docstring of {name}", "", "what goes wrong, in a sentence", "write one")

    @property
    def expected(self) -> str:
        """What must catch the fault, in words."""
        stuck = f", stuck in {self.stuck_in}" if self.stuck_in else ""
        return f"{self.caught_by}{stuck}" + (f"; {self.or_by} where the loop ends" if self.or_by else "")

    def expected_if(self, ended: bool) -> Fault:
        """The fault as a run of it is judged. ``ended`` says whether every rank came to the end of the loop."""
        if not ended or not self.or_by:
            return self
        return replace(self, caught_by=self.or_by, rank=self.or_rank, stuck_in="", or_by="", or_rank=None)

    @property
    def hangs(self) -> bool:
        """Whether only the time limit of the command ends it."""
        return bool(self.stuck_in)


# Lower case, as decorators are written.
fault = Fault
FAULTS: dict[str, Fault] = {}


@dataclass
class Wiring:
    """What a loop is given. A fault replaces parts of it.

    Attributes:
        loop: the loop that will run.
        denoiser, request, x_0, group, observe: its arguments.
        patches: context managers that are closed when the loop ends, however it ends.
        done: how many steps have been finished.
    """

    loop: Loop
    denoiser: Denoiser
    request: DenoiseRequest
    x_0: Tensor
    group: Group
    observe: Observe
    patches: ExitStack = field(default_factory=ExitStack)
    done: int = 0

    @property
    def rank(self) -> int:
        """This process's rank, before any fault changes it."""
        return self._rank

    def __post_init__(self) -> None:
        self._rank = self.group.rank
        observe = self.observe

        def count(step: int, x_t: Tensor, state: State = None) -> None:
            self.done = step + 1
            observe(step, x_t, state)

        self.observe = count

    def at(self, step: int, rank: int | None = None) -> bool:
        """Whether the loop is in ``step`` and this is ``rank`` (None: any rank)."""
        return self.done == step and rank in (None, self.rank)

    def after_step(self, change: Callable[[int, Tensor], Tensor]) -> None:
        """Lets ``change(step, x_t)`` replace ``x_t`` in place before the loop goes on with it."""
        observe = self.observe

        def changed(step: int, x_t: Tensor, state: State = None) -> None:
            x_t.copy_(change(step, x_t))
            observe(step, x_t, state)

        self.observe = changed

    def on_velocity(self, change: Callable[[Denoiser, Tensor, int, str], Tensor]) -> None:
        """Lets ``change(denoiser, x_t, step, branch)`` evaluate instead of the denoiser."""
        self.denoiser = _ChangedDenoiser(self.denoiser, change)

    def on_gather(self, change: Callable[[list[Tensor]], list[Tensor]]) -> None:
        """Lets ``change(slots)`` replace what was gathered."""
        before = self.group
        self.group = _ChangedGroup(before, all_gather=lambda tensor: change(before.all_gather(tensor)))

    def on_broadcast(self, change: Callable[[Group, Tensor], Tensor]) -> None:
        """Lets ``change(group, tensor)`` broadcast instead of the group."""
        before = self.group
        self.group = _ChangedGroup(before, broadcast=lambda tensor, src=0: change(before, tensor))

    def use_schedule(self, schedule: Schedule) -> None:
        """Gives the loop another schedule."""
        self.request = self.request.resolved(schedule)

    def use_request(self, **changes: Any) -> None:
        """Gives the loop a request with other fields, but the same schedule and branches."""
        self.request = replace(self.request.resolved(), **changes)


class _ChangedDenoiser:
    def __init__(self, denoiser: Denoiser, change: Callable[[Denoiser, Tensor, int, str], Tensor]) -> None:
        self._denoiser, self._change = denoiser, change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._denoiser, name)

    def velocity(self, x_t: Tensor, step: int, branch: str, **asked: Any) -> Tensor:
        denoiser: Any = Asking(self._denoiser, asked) if asked else self._denoiser
        return self._change(denoiser, x_t, step, branch)


class _ChangedGroup:
    """A group with some of its attributes replaced."""

    def __init__(self, group: Group, **changes: Any) -> None:
        self._group = group
        self.__dict__.update(changes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._group, name)


def changed_group(group: Group, **changes: Any) -> Any:
    """``group`` with some of its attributes replaced."""
    return _ChangedGroup(group, **changes)


def _broken(break_it: Callable[[Wiring], None], wiring: Wiring) -> Tensor:
    with wiring.patches:
        break_it(wiring)
        return wiring.loop(wiring.denoiser, wiring.request, wiring.x_0, wiring.group, wiring.observe)


def loop_to_break(target: Target, base: str) -> str | None:
    """Which of a target's loops a fault of ``base`` breaks: one held to that version; None if there is none."""
    return next((name for name in default_loops(target) if kind_of(target.expects[name]) == base), None)


def _reference(break_it: Callable[[Wiring], None]) -> str:
    """The value for ``--loop``. Ranks find a user's file by its path, whatever its module is called here."""
    module = break_it.__module__
    place = module if module.startswith("verify.") else break_it.__code__.co_filename
    return f"{place}:{break_it.__name__}"
