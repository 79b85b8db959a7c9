"""Whether the fuzzer catches every wrong combine: by which property, and after how many cases."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from verify.errors import Unjudged
from verify.fuzz.boundary import GUIDED_STEPS_AGREE, HOST_ON_ONE_RANK, decide, judge_boundary
from verify.fuzz.drawing import draw
from verify.fuzz.engine import PROFILES, Fuzzer
from verify.fuzz.mutants import MUTANTS
from verify.fuzz.session import FuzzJob
from verify.fuzz.strategies import schedules
from verify.fuzz.tasks import MUTANT, describe
from verify.options.option import reproducing
from verify.options.table import COMMANDS
from verify.ranks.local.pool import RankPool
from verify.ranks.plan import place
from verify.report.documents.fuzz import Mutant, Mutants
from verify.report.documents.parts import head
from verify.runner.run import pool_for
from verify.runner.tracing import Progress, Unheard
from verify.verdict import Verdict


def hunt(pool: RankPool, mutant: str, profile: str, seed: int) -> Mutant:
    """Runs the profile on a mutant until a property fails."""
    if mutant == HOST_ON_ONE_RANK:
        return _hunt_boundary(pool, profile, seed)
    fuzzer = Fuzzer(pool, MUTANT + mutant)
    fuzzer.explore(PROFILES[profile], seed, stop_at_failure=True)
    first = {name: failure.number for name, failure in fuzzer.tally.failures.items()}
    return _fate(mutant, MUTANTS[mutant].what, first)


def _hunt_boundary(pool: RankPool, profile: str, seed: int) -> Mutant:
    bounds = draw(schedules(), PROFILES[profile] // 4, seed)
    by_rank = pool.run(decide, bounds, HOST_ON_ONE_RANK, name="guided steps", timeout=60.0)
    for number in range(len(bounds)):
        finding = judge_boundary(bounds[number : number + 1], [rank[number : number + 1] for rank in by_rank])
        if finding.verdict is Verdict.FAIL:
            return _fate(HOST_ON_ONE_RANK, "one rank compares host floats", {GUIDED_STEPS_AGREE: number + 1})
    return _fate(HOST_ON_ONE_RANK, "one rank compares host floats", {})


def _fate(mutant: str, what: str, first: Mapping[str, int]) -> Mutant:
    """``first`` has the number of the first case that breaks each property."""
    earliest_first = dict(sorted(first.items(), key=lambda item: item[1]))
    return Mutant(mutant=mutant, what=what, cases_needed=min(first.values(), default=None), properties=earliest_first)


def run_mutants(profile: str, seed: int, device: str, backend: str | None, progress: Progress | None = None) -> Mutants:
    """Tries every mutant on two ranks.

    Raises:
        BadInput: no such profile, seed, device or backend.
    """
    FuzzJob(profile=profile, seed=seed).checked()
    began, progress = time.monotonic(), progress or Unheard()
    names = [*MUTANTS, HOST_ON_ONE_RANK]
    caught: list[Mutant] = []
    environment: list[dict[str, Any]] = []
    notes: tuple[str, ...] = ()
    progress.start("mutants", len(names))
    try:
        pool = pool_for(place(2, device, backend).spec)
        environment = pool.run(describe)
        for name in names:
            caught.append(hunt(pool, name, profile, seed))
            progress.update("mutants", len(caught))
    except Unjudged as reason:  # No such machine, or a rank died or hung.
        notes = (str(reason),)
    progress.finish("mutants")
    return Mutants(
        **head(command_of(profile, seed, device, backend), environment, notes),
        profile=profile,
        seed=seed,
        device=device,  # type: ignore[arg-type]
        mutants=tuple(caught),
        timings={"total": round(time.monotonic() - began, 3)},
    )


def command_of(profile: str, seed: int, device: str, backend: str | None) -> str:
    """The command line that tries the same mutants."""
    given = {"mutants": True, "profile": profile, "seed": seed, "device": device, "backend": backend}
    return reproducing("fuzz", COMMANDS["fuzz"], given)
