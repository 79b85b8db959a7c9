"""The points that a benchmark measures one after another, in turns and within a budget."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, TypeVar

from verify.bagel.config import preset
from verify.bench.budget import Budget, OutOfTime
from verify.expected import ONE_BRANCH_A_RANK
from verify.ranks.failure.failure import RankFailure
from verify.ranks.local.pool import RankPool
from verify.ranks.plan import Placement, place
from verify.runner.job import Job
from verify.runner.run import pool_for
from verify.runner.tracing import Progress, Unheard

# The image scale where the world size needs a third branch and the request has none.
_IMAGE_SCALE = 1.5

Save = Callable[[list[dict[str, Any]]], None]


@dataclass(frozen=True)
class Point:
    """One setting to be measured.

    Attributes:
        job: request, network, loops and ranks.
        alternations: how often each loop is run, after one turn that warms up.
        graph: whether each loop is also run with its forward passes replayed from CUDA graphs.
    """

    job: Job
    alternations: int = 10
    graph: bool = False

    @property
    def name(self) -> str:
        """For progress and messages."""
        r = self.job.request
        return f"{self.job.options.preset} {r.height}x{r.width}, {self.job.ranks} ranks, {r.schedule.steps} steps"


_Variant = TypeVar("_Variant")


class Measurement(ABC):
    """What is measured at one point. Its turns are repeated; its JSON form is valid after each."""

    def __init__(self, point: Point, placement: Placement, pool: RankPool, budget: Budget) -> None:
        """``budget`` is that of all points: beyond it nothing may run."""
        self.point, self.placement = point, placement
        self._pool, self._budget = pool, budget

    def run(self, task: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Runs a task of this point on every rank.

        Raises:
            OutOfTime: it did not end before the deadline. Its ranks have been ended.
            RankFailure: a rank died, raised or hung.
        """
        timeout = min(self.point.job.timeout, self._budget.left)
        try:
            return self._pool.run(task, *arguments, name=f"bench {self.point.name}", timeout=timeout)
        except RankFailure:
            if self._budget.left:
                raise
            raise OutOfTime from None

    @property
    @abstractmethod
    def alternations(self) -> int:
        """Turns in which every loop was timed."""

    def in_turn(self, variants: Sequence[_Variant]) -> Sequence[_Variant]:
        """What to time in this turn, in the opposite order of the turn before: what comes later finds a warmer GPU with
        lower clocks.
        """
        return variants if self.alternations % 2 == 0 else variants[::-1]

    @abstractmethod
    def prepare(self) -> None:
        """Makes ready what the first turn needs."""

    @abstractmethod
    def turn(self, warm_up: bool) -> None:
        """Times every loop once. The times of a ``warm_up`` are not kept."""

    def after_first(self) -> None:  # noqa: B027 - not every measurement has something to add.
        """Measures what is needed once, after the loops have been timed once."""

    @abstractmethod
    def at_last(self, allowed: Callable[[], bool]) -> None:
        """Measures what is optional, while ``allowed()`` says that there is time for a turn."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The JSON form of what is known so far."""

    def setting(self) -> dict[str, Any]:
        """The part of the JSON form that says what was measured, where and how often."""
        job, request = self.point.job, self.point.job.request
        return {
            "height": request.height,
            "width": request.width,
            "preset": job.options.preset,
            "dtype": job.options.dtype,
            "world_size": job.ranks,
            "backend": self.placement.spec.backend,
            "device": job.device,
            "steps": request.schedule.steps,
            "guided_steps": request.schedule.guided_steps,
            "alternations": self.alternations,
            "alternations_asked": self.point.alternations,
        }


def measure(
    kind: type[Measurement],
    points: Sequence[Point],
    budget: Budget | None = None,
    save: Save = lambda done: None,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Measures every point in turn. Each may use its share of ``budget``.

    Args:
        kind: what to measure at each point.
        points: the points. Consecutive points with one network and number of ranks keep their models.
        budget: how long all points may take together; no limit if left out.
        save: called after each turn with all that is known, so that a benchmark that is cut short keeps it.
        progress: told how far the benchmark is.

    Raises:
        RankFailure: a rank died, raised or hung. What was measured before it has been saved.
    """
    budget = Budget() if budget is None else budget
    done: list[dict[str, Any]] = []
    for number, point in enumerate(points):
        if not budget.left:
            break
        placement = _place(point)
        pool = pool_for(placement.spec)
        measured = kind(point, placement, pool, budget)

        def keep(measured: Measurement = measured) -> None:
            save([*done, measured.to_dict()])

        _measure_point(measured, budget.share(len(points) - number), keep, progress or Unheard())
        done.append(measured.to_dict())
        save(done)
        following = [_place(point).spec for point in points[number + 1 : number + 2]]
        if following and following != [placement.spec]:
            pool.stop()  # Each of its ranks holds a model; the next pool needs the memory.
    return done


def _place(point: Point) -> Placement:
    return place(point.job.ranks, point.job.device, point.job.backend)


def _measure_point(measured: Measurement, share: Budget, keep: Callable[[], None], progress: Progress) -> None:
    """Takes turns at one point as often as its share of the budget allows."""
    point = measured.point
    progress.start(point.name, point.alternations + 1)
    with suppress(OutOfTime):
        measured.prepare()
        longest = 0.0
        for turn in range(point.alternations + 1):
            # Without one alternation the point says nothing.
            if turn > 1 and not share.allows(longest):
                break
            began = time.monotonic()
            measured.turn(warm_up=turn == 0)
            if turn:
                longest = max(longest, time.monotonic() - began)
            if turn == 1:
                keep()
                measured.after_first()
            keep()
            progress.update(point.name, turn + 1)
        measured.at_last(lambda: share.allows(longest))
    if measured.alternations == point.alternations:
        progress.finish(point.name)


def settings(
    base: Job,
    sides: Sequence[int] = (),
    presets: Sequence[str] = (),
    world_sizes: Sequence[int] = (),
    intervals: Sequence[tuple[float, float]] = (),
    timesteps: Sequence[int] = (),
) -> Iterator[Job]:
    """Every combination of what is listed; the rest stays as in ``base``. Sizes change fastest, presets slowest.

    A loop that gives each rank one branch needs as many branches as ranks: three ranks mean guidance by text and image,
    two mean guidance by text alone.
    """
    one_branch_a_rank = any(kind in ONE_BRANCH_A_RANK for kind in base.kinds().values())
    worlds: Sequence[int | None] = world_sizes or [base.world_size]
    choices = product(
        presets or [base.options.preset],
        worlds,
        timesteps or [base.request.num_timesteps],
        intervals or [base.request.cfg_interval],
        sides or [0],
    )
    for name, world_size, points, interval, side in choices:
        # A preset brings its size, unless a size was asked for.
        side = side or (preset(name).side if presets else 0)
        changes: dict[str, Any] = {"num_timesteps": points, "cfg_interval": interval}
        changes |= {"height": side, "width": side} if side else {}
        if world_sizes and one_branch_a_rank:
            given = base.request.cfg_img_scale
            changes["cfg_img_scale"] = 1.0 if world_size == 2 else given if given > 1.0 else _IMAGE_SCALE
        request, options = replace(base.request, **changes), replace(base.options, preset=name)
        yield replace(base, request=request, options=options, world_size=world_size)
