"""Whether the fuzzer catches every wrong combine: by which property, and after how many cases."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from verify.report.documents.parts import SCHEMA, Made, finite
from verify.runner.run import pool_for
from verify.runner.tracing import Progress
from verify.verdict import EXIT_STATUS, Verdict


@dataclass(frozen=True)
class Caught:
    """What became of one mutant.

    Attributes:
        mutant: its name.
        what: what is wrong with it.
        properties: the properties that failed, each with the number of the case, the earliest first.
    """

    mutant: str
    what: str
    properties: Mapping[str, int]

    @property
    def cases_needed(self) -> int | None:
        """The number of the first case that shows it."""
        return min(self.properties.values(), default=None)


@dataclass(frozen=True)
class MutantReport:
    """What became of all mutants. ``notes`` say why the list is incomplete, if it is."""

    profile: str
    seed: int
    device: str
    caught: Sequence[Caught]
    environment: Sequence[Mapping[str, Any]]
    seconds: float
    notes: Sequence[str] = ()
    backend: str | None = None

    @property
    def command(self) -> str:
        """The command line that tries the same mutants."""
        return reproducing("fuzz", COMMANDS["fuzz"], {"mutants": True} | vars(self))

    @property
    def exit_status(self) -> int:
        """0 if every mutant was caught, 1 if one was not, 3 if not all were tried."""
        if not all(c.properties for c in self.caught):
            return EXIT_STATUS[Verdict.FAIL]
        return EXIT_STATUS[Verdict.UNKNOWN if self.notes else Verdict.PASS]

    @property
    def document(self) -> Mutants:
        """The JSON document."""
        return Mutants(
            schema=SCHEMA,
            command=self.command,
            made=Made.now(),
            environment=tuple(finite(rank) for rank in self.environment),
            notes=tuple(self.notes),
            profile=self.profile,
            seed=self.seed,
            device=self.device,  # type: ignore[arg-type]
            mutants=tuple(
                Mutant(mutant=c.mutant, what=c.what, cases_needed=c.cases_needed, properties=dict(c.properties))
                for c in self.caught
            ),
            timings={"total": round(self.seconds, 3)},
        )


def hunt(pool: RankPool, mutant: str, profile: str, seed: int) -> Caught:
    """Runs the profile on a mutant until a property fails."""
    if mutant == HOST_ON_ONE_RANK:
        return _hunt_boundary(pool, profile, seed)
    fuzzer = Fuzzer(pool, MUTANT + mutant)
    fuzzer.explore(PROFILES[profile], seed, stop_at_failure=True)
    first = {name: failure.number for name, failure in fuzzer.tally.failures.items()}
    return Caught(mutant, MUTANTS[mutant].what, dict(sorted(first.items(), key=lambda item: item[1])))


def _hunt_boundary(pool: RankPool, profile: str, seed: int) -> Caught:
    bounds = draw(schedules(), PROFILES[profile] // 4, seed)
    by_rank = pool.run(decide, bounds, HOST_ON_ONE_RANK, name="guided steps", timeout=60.0)
    for number in range(len(bounds)):
        finding = judge_boundary(bounds[number : number + 1], [rank[number : number + 1] for rank in by_rank])
        if finding.verdict is Verdict.FAIL:
            return Caught(HOST_ON_ONE_RANK, "one rank compares host floats", {GUIDED_STEPS_AGREE: number + 1})
    return Caught(HOST_ON_ONE_RANK, "one rank compares host floats", {})


def run_mutants(
    profile: str, seed: int, device: str, backend: str | None, progress: Progress | None = None
) -> MutantReport:
    """Tries every mutant on two ranks.

    Raises:
        BadInput: no such profile, seed, device or backend.
    """
    FuzzJob(profile=profile, seed=seed).checked()
    began = time.monotonic()
    names = [*MUTANTS, HOST_ON_ONE_RANK]
    caught: list[Caught] = []
    environment: list[dict[str, Any]] = []
    notes: tuple[str, ...] = ()
    if progress is not None:
        progress.start("mutants", len(names))
    try:
        pool = pool_for(place(2, device, backend).spec)
        environment = pool.run(describe)
        for name in names:
            caught.append(hunt(pool, name, profile, seed))
            if progress is not None:
                progress.update("mutants", len(caught))
    except Unjudged as reason:  # No such machine, or a rank died or hung.
        notes = (str(reason),)
    if progress is not None:
        progress.finish("mutants")
    return MutantReport(profile, seed, device, caught, environment, time.monotonic() - began, notes, backend)
