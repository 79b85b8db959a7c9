"""Times a forward pass of a target's network in turn with the built-in one's, with the same noise on the same GPU."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from verify.bagel.config import preset
from verify.bench.ceiling import median_seconds
from verify.bench.statistics import paired_ratio, spread
from verify.errors import BadInput
from verify.protocols import Denoiser
from verify.ranks.plan import place
from verify.ranks.rank import Rank
from verify.runner.job import Job
from verify.runner.run import pool_for
from verify.targets.finding import find_target
from verify.targets.protocol import Prepared, understood
from verify.tasks.stage import Plan, Stage, describe_rank

BUILTIN = "builtin"
_BRANCH = "gen"
_RUNS, _WARM_UP = 5, 2
_ALONE = "rank 0 evaluates, in turn, while the others wait: nothing else uses its device"


def forwards(job: Job, rounds: int) -> dict[str, Any]:
    """Times one evaluation of branch ``gen`` by the job's target and by the built-in network, ``rounds`` times in turn.

    Returns:
        A JSON object: ``rows``, one a network, in milliseconds; the target's also holds its seconds over the built-in
        one's with their interval, and ``velocities_apart``. ``environment`` of every rank, and ``notes``.

    Raises:
        BadInput: the target is the built-in one, or its latents are not the built-in network's.
    """
    if job.target == BUILTIN:
        raise BadInput.of("--forwards", job.target, "another target than the built-in one", "name whose to time")
    pool = pool_for(place(job.ranks, job.device, job.backend).spec)
    plan = job.judged_plans()[0]
    results = pool.run(forwards_in_turn, plan, rounds, name="forwards", timeout=job.timeout)
    measured = results[0]
    seconds = measured["seconds"]
    rows = [
        {"network": name, "preset": job.options.preset, "dtype": job.options.dtype, "pixels": job.request.height}
        | {f"{key}_ms": 1e3 * value for key, value in spread(values).items() if key != "values"}
        for name, values in seconds.items()
    ]
    apart = {"velocities_apart": measured["velocities_apart"]}
    rows[0] |= {f"over_{BUILTIN}": paired_ratio(seconds[job.target], seconds[BUILTIN])} | apart
    return {"rows": rows, "environment": [result["environment"] for result in results], "notes": measured["notes"]}


def forwards_in_turn(rank: Rank, plan: Plan, rounds: int) -> dict[str, Any]:
    """On rank 0; the others only help the target make its process groups, with a network that takes no memory.

    Returns:
        ``environment``; on rank 0 also ``seconds`` of each network, the median of a few runs a round;
        ``velocities_apart``: the norm of the velocities' difference over that of the built-in one; ``notes``.
    """
    if rank.rank:
        side = preset("tiny").side
        request = replace(plan.request, height=side, width=side)
        small = replace(plan, request=request, options=replace(plan.options, preset="tiny", checkpoint=None))
        return {"environment": _environment(rank, plan, Stage.of(rank, small).prepared)}
    stage = Stage.of(rank, plan)
    theirs = stage.prepared
    ours = find_target(BUILTIN).prepare(plan.request, plan.options, 0, rank.device)
    _require_comparable(plan, theirs, ours)
    x_0 = ours.x_0
    assert isinstance(x_0, Tensor)
    networks: dict[str, Denoiser] = {plan.target: theirs.denoiser, BUILTIN: ours.denoiser}
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    with stage.arithmetic():
        velocities = [denoiser.velocity(x_0, 0, _BRANCH).double() for denoiser in networks.values()]
        apart = (velocities[0] - velocities[1]).norm() / velocities[1].norm()
        for number in range(rounds):
            rank.status.activity(f"round {number} of {rounds}")
            for name, denoiser in networks.items():
                once = partial(denoiser.velocity, x_0, 0, _BRANCH)
                seconds[name].append(median_seconds(once, rank.device, _RUNS, _WARM_UP))
    return {
        "environment": _environment(rank, plan, theirs),
        "seconds": seconds,
        "velocities_apart": float(apart),
        "notes": [_ALONE, *theirs.notes],
    }


def _environment(rank: Rank, plan: Plan, prepared: Prepared) -> dict[str, Any]:
    return describe_rank(rank, plan.options) | dict(prepared.environment)


def _require_comparable(plan: Plan, theirs: Prepared, ours: Prepared) -> None:
    branches = understood(find_target(plan.target), plan.request).branches
    shapes = [tuple(x_0.shape) if isinstance(x_0, Tensor) else () for x_0 in (theirs.x_0, ours.x_0)]
    if shapes[0] != shapes[1] or _BRANCH not in branches:
        found = f"{shapes[0]} and branches {', '.join(branches)}"
        expected = f"{shapes[1]} and a branch {_BRANCH}, as the built-in network's"
        raise BadInput.of("--forwards", plan.target, f"latents {expected}, not {found}", "name one that draws Bagel")
