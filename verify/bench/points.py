"""The benchmark: versions of the loop in turn, on one pool, over several sizes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from verify.bagel.config import preset
from verify.bench.budget import Budget, OutOfTime
from verify.bench.summary import GRAPH, summarise
from verify.bench.tasks import Timing, forward_against_ceiling, prepare_point, timed_loop
from verify.job import Job
from verify.ranks.failure import RankFailure
from verify.ranks.plan import Placement, place
from verify.ranks.pool import RankPool
from verify.runner import Progress, pool_for
from verify.schedule import ONE_BRANCH_A_RANK
from verify.targets.protocol import REFERENCE
from verify.targets.session import Plan

_CEILING_ROUNDS = 3
_REFERENCE_RUNS = 2
_WARM_UP_STEPS = 5
# What guides by the image too where the world size asks for a third branch and the request has none.
_IMAGE_SCALE = 1.5

Save = Callable[[dict[str, Any]], None]


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


@dataclass
class _Measured:
    """What has been timed at one point so far."""

    point: Point
    placement: Placement
    prepared: dict[str, float] = field(default_factory=dict)
    graph: bool = False
    graph_fault: str = ""
    timings: dict[str, list[list[Timing]]] = field(default_factory=dict)
    forward: dict[str, Any] | None = None

    def ready(self, ranks: Sequence[Mapping[str, Any]]) -> None:
        """Every rank has said how long it took to get ready, and whether it can replay CUDA graphs."""
        self.prepared = {key: max(rank[key] for rank in ranks) for key in ("seconds", "graph_s") if key in ranks[0]}
        self.graph_fault = next((rank["graph_fault"] for rank in ranks if rank.get("graph_fault")), "")
        self.graph = self.point.graph and not self.graph_fault

    @property
    def alternations(self) -> int:
        """Turns in which every loop was timed."""
        return min((len(turns) for name, turns in self.timings.items() if name != REFERENCE), default=0)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        job, spec = self.point.job, self.placement.spec
        schedule = job.request.schedule
        return {
            "height": job.request.height,
            "width": job.request.width,
            "preset": job.options.preset,
            "dtype": job.options.dtype,
            "world_size": job.ranks,
            "backend": spec.backend,
            "device": job.device,
            "devices": list(spec.devices),
            "branches": list(job.request.branches),
            "cfg_interval": list(job.request.cfg_interval),
            "num_timesteps": job.request.num_timesteps,
            "steps": schedule.steps,
            "guided_steps": schedule.guided_steps,
            "alternations": self.alternations,
            "alternations_asked": self.point.alternations,
            "notes": [*self.placement.notes, *([f"CUDA graphs: {self.graph_fault}"] if self.graph_fault else [])],
            "prepare": self.prepared,
            "forward": self.forward,
        } | summarise(
            # The reference first, as in every table.
            {name: self.timings[name] for name in sorted(self.timings, key=lambda name: name != REFERENCE)},
            job.kinds() | {REFERENCE: REFERENCE},
            schedule,
            job.request.branches,
            spec.devices,
            self.forward,
        )


def measure(
    points: Sequence[Point],
    budget: Budget | None = None,
    save: Callable[[list[dict[str, Any]]], None] = lambda done: None,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Every point in turn; each may use its share of ``budget``.

    Args:
        points: what to measure; consecutive points of one network and number of ranks keep their models.
        budget: how long all of it may take; for ever if left out.
        save: called with all that is known after each turn, so that whoever is cut short has kept it.
        progress: who wants to follow.

    Raises:
        RankFailure: a rank died, raised or hung. What was measured before it has been saved.
    """
    budget = Budget() if budget is None else budget
    done: list[dict[str, Any]] = []
    for number, point in enumerate(points):
        if not budget.left:
            break
        placement = place(point.job.ranks, point.job.device, point.job.backend)
        pool = pool_for(placement.spec)

        def keep(measured: dict[str, Any]) -> None:
            save([*done, measured])

        done.append(_measure_point(point, placement, pool, budget, len(points) - number, keep, progress))
        save(done)
        following = [place(p.job.ranks, p.job.device, p.job.backend).spec for p in points[number + 1 : number + 2]]
        if following and following != [placement.spec]:
            pool.stop()  # Its ranks hold a model each; the next ones need the memory.
    return done


def _measure_point(
    point: Point,
    placement: Placement,
    pool: RankPool,
    total: Budget,
    points_left: int,
    keep: Save,
    progress: Progress | None,
) -> dict[str, Any]:
    """Times every loop of a point in turn, as often as its share of the budget allows."""
    budget = total.share(points_left)
    measured = _Measured(point, placement)
    (reference, *plans) = point.job.plans()

    def run(task: Callable[..., Any], *arguments: Any) -> list[Any]:
        return run_in_time(pool, point, total, task, *arguments)

    if progress is not None:
        progress.start(point.name, point.alternations + 1)
    with suppress(OutOfTime):
        measured.ready(run(prepare_point, reference, point.graph))
        variants = [(plan, False) for plan in plans] + [(plan, True) for plan in plans if measured.graph]
        measured.timings = {_name(plan, replayed): [] for plan, replayed in variants}
        longest = 0.0
        for turn in range(point.alternations + 1):
            # One alternation there must be, or the point says nothing.
            if turn > 1 and not budget.allows(longest):
                break
            began = time.monotonic()
            # The first turn warms up: kernels are loaded and chosen in a few steps, and its seconds measure nothing.
            steps = None if turn else _WARM_UP_STEPS
            timed = {_name(plan, replayed): run(timed_loop, plan, True, replayed, steps) for plan, replayed in variants}
            if turn:
                longest = max(longest, time.monotonic() - began)
                for name, timings in timed.items():
                    measured.timings[name].append(timings)
            if turn == 1:
                keep(measured.to_dict())
                measured.forward = run(forward_against_ceiling, reference, _CEILING_ROUNDS, measured.graph)[0]
            keep(measured.to_dict())
            if progress is not None:
                progress.update(point.name, turn + 1)
        for _ in range(_REFERENCE_RUNS):
            if budget.allows(longest):
                alone = [timing for timing in run(timed_loop, reference, True) if timing is not None]
                measured.timings.setdefault(REFERENCE, []).append(alone)
    if progress is not None and measured.alternations == point.alternations:
        progress.finish(point.name)
    return measured.to_dict()


def run_in_time(pool: RankPool, point: Point, budget: Budget, task: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Runs a task of one point on every rank.

    Raises:
        OutOfTime: it did not end before the deadline; the ranks that were at it have been ended.
        RankFailure: a rank died, raised or hung.
    """
    timeout = min(point.job.timeout, budget.left)
    try:
        return pool.run(task, *arguments, name=f"bench {point.name}", timeout=timeout)
    except RankFailure:
        if budget.left:
            raise
        raise OutOfTime from None


def _name(plan: Plan, replayed: bool) -> str:
    return plan.loop_name + GRAPH * replayed


def settings(
    base: Job,
    sides: Sequence[int] = (),
    presets: Sequence[str] = (),
    world_sizes: Sequence[int] = (),
    intervals: Sequence[tuple[float, float]] = (),
    timesteps: Sequence[int] = (),
) -> Iterator[Job]:
    """Every combination of what is listed; what is not stays as in ``base``. Sizes change first, presets last.

    A loop that gives each rank one branch needs as many branches as ranks: three ranks stand for image guidance, two
    for text guidance alone.
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
        # A preset has a size of its own, unless one was asked for.
        side = side or (preset(name).side if presets else 0)
        changes: dict[str, Any] = {"num_timesteps": points, "cfg_interval": interval}
        changes |= {"height": side, "width": side} if side else {}
        if world_sizes and one_branch_a_rank:
            given = base.request.cfg_img_scale
            changes["cfg_img_scale"] = 1.0 if world_size == 2 else given if given > 1.0 else _IMAGE_SCALE
        request, options = replace(base.request, **changes), replace(base.options, preset=name)
        yield replace(base, request=request, options=options, world_size=world_size)
