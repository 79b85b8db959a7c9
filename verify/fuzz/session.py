"""A whole fuzz run: the combine's cases, the exact ones, the schedules; or the replay of a saved case."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from verify.errors import BadInput, Unjudged
from verify.fuzz.boundary import Bounds, decide, judge_boundary
from verify.fuzz.case import Case
from verify.fuzz.drawing import draw, shrink
from verify.fuzz.engine import PROFILES, Fuzzer
from verify.fuzz.exact import answer_to
from verify.fuzz.saved import Saved, read_saved, replay_command
from verify.fuzz.strategies import schedules
from verify.fuzz.tasks import EXACT, MUTANT, OF_TARGET, OWN, combine_of, describe
from verify.options.option import reproducing
from verify.options.table import COMMANDS
from verify.options.targets import given_options, split_options
from verify.ranks.failure.failure import RankFailure
from verify.ranks.local.pool import RankPool
from verify.ranks.plan import place
from verify.report.documents.fuzz import Fuzz
from verify.report.documents.parts import Check, Failure, head, merged_verdict
from verify.runner.run import pool_for
from verify.runner.tracing import Progress, Unheard
from verify.targets.loading import load_object
from verify.verdict import Finding, Verdict

# One schedule is drawn for so many cases of the combine.
_CASES_PER_SCHEDULE = 4
DEFAULT_TIMEOUT = 3600.0


@dataclass(frozen=True)
class FuzzJob:
    """What to fuzz, and where.

    Attributes:
        profile: ``fast``, ``ci`` or ``nightly``; it says how many cases are drawn.
        cases: how many instead; None for the profile's number.
        seed: of everything that is drawn.
        combine: what is under test: this package's combine, or another as ``FILE.py:NAME`` or ``MODULE:NAME``.
        world_size, device, backend: those of the ranks.
        save: the folder for failing cases.
    """

    profile: str = "fast"
    cases: int | None = None
    seed: int = 0
    combine: str = OWN
    world_size: int = 2
    device: str = "cpu"
    backend: str | None = None
    save: Path = Path("fuzz-failures")

    @property
    def count(self) -> int:
        """How many cases are drawn."""
        return PROFILES[self.profile] if self.cases is None else self.cases

    def checked(self) -> FuzzJob:
        """This job, if it can be run.

        Raises:
            BadInput: it cannot, whatever the machine.
        """
        if self.profile not in PROFILES:
            raise BadInput.of("--profile", self.profile, f"one of {', '.join(PROFILES)}", "choose one")
        if self.cases is not None and not 1 <= self.cases <= 10_000_000:
            raise BadInput.of("--cases", self.cases, "an integer from 1 to 10000000", "choose one in that range")
        if not 0 <= self.seed < 2**63:
            raise BadInput.of("--seed", self.seed, "an integer from 0 to 2**63 - 1", "choose one in that range")
        if self.combine.startswith(OF_TARGET):
            combine_of(self.combine.removeprefix(OF_TARGET))
        elif self.combine != OWN and not self.combine.startswith(MUTANT):
            combine = load_object("--combine", self.combine)
            if not callable(combine):
                fix = f"it is a {type(combine).__name__}"
                raise BadInput.of("--combine", self.combine, "a function with combine_cfg's arguments", fix)
        return self

    @property
    def command(self) -> str:
        """The command line that reproduces this job."""
        of_target = self.combine.startswith(OF_TARGET)
        own: dict[str, Any] = {"combine": None} if of_target or self.combine == OWN else {}
        if of_target:
            target = self.combine.removeprefix(OF_TARGET)
            own |= {"target": split_options(target)[0], "target_option": given_options(target)}
        return reproducing("fuzz", COMMANDS["fuzz"], vars(self) | own)


@dataclass(frozen=True)
class _Found:
    """What the ranks of a job found.

    Attributes:
        findings: one per property.
        cases: distinct cases evaluated, exact ones included.
        environment: what each rank ran on.
        replays: for each failed property, the command that reproduces it.
        timings: seconds, beside those of the whole.
        failure: for a job that some rank did not finish, why.
    """

    findings: Sequence[Finding] = ()
    cases: int = 0
    environment: Sequence[Mapping[str, Any]] = ()
    replays: Mapping[str, str] = field(default_factory=dict)
    timings: Mapping[str, float] = field(default_factory=dict)
    failure: RankFailure | None = None


def run_fuzz(job: FuzzJob, progress: Progress | None = None, began: float | None = None) -> Fuzz:
    """Runs a job. ``began`` is when its clock started, if not now.

    Raises:
        BadInput: the job or a file it names cannot be used.
    """
    clock, told = time.monotonic() if began is None else began, progress or Unheard()

    def explore(pool: RankPool) -> _Found:
        fuzzer = Fuzzer(pool, job.combine)
        # Drawn while the ranks start, and again where they are used: the same seed gives the same cases.
        bounds = draw(schedules(), max(1, job.count // _CASES_PER_SCHEDULE), job.seed)
        environment = pool.run(describe)
        ready = {"ranks ready": time.monotonic() - clock}
        told.start("fuzz", job.count)
        try:
            fuzzer.explore(job.count, job.seed, lambda done: told.update("fuzz", done))
        except RankFailure as failure:
            # What had failed by then has failed, also where a rank died while the case was made simpler.
            failed = [f for f in fuzzer.findings(job.device) if f.verdict is Verdict.FAIL]
            return _Found(failed, fuzzer.tally.cases, environment, failure=failure)
        findings = [*fuzzer.findings(job.device), fuzz_boundary(pool, bounds, job.seed)]
        told.finish("fuzz")
        replays = _save(job, pool.spec.backend, findings)
        return _Found(findings, fuzzer.tally.cases, environment, replays, ready)

    return _on_ranks(job.checked(), explore, clock)


def _on_ranks(job: FuzzJob, run: Callable[[RankPool], _Found], began: float) -> Fuzz:
    """The document of what ``run`` finds, or of why it could not be done."""
    found, backend = _Found(), ""
    notes: tuple[str, ...] = ()
    try:
        placement = place(job.world_size, job.device, job.backend)
        backend, notes = placement.spec.backend, placement.notes
        found = run(pool_for(placement.spec))
    except RankFailure as failure:
        found = _Found(failure=failure)
    except Unjudged as reason:
        notes = (*notes, str(reason))
    total = time.monotonic() - began
    return Fuzz(
        **head(job.command, found.environment, notes),
        verdict=merged_verdict(found.findings, found.failure is not None),
        profile=job.profile,
        seed=job.seed,
        combine=job.combine,
        world_size=job.world_size,
        backend=backend,  # type: ignore[arg-type]
        device=job.device,  # type: ignore[arg-type]
        cases=found.cases,
        cases_per_minute=round(60 * found.cases / total, 1),
        properties=tuple(map(Check.of, found.findings)),
        replays=dict(found.replays),
        failure=None if found.failure is None else msgspec.convert(found.failure.to_dict(), Failure),
        timings={name: round(seconds, 3) for name, seconds in {**found.timings, "total": total}.items()},
    )


def fuzz_boundary(pool: RankPool, bounds: Sequence[Bounds], seed: int, variant: str = "") -> Finding:
    """Judges schedules on every rank, and shrinks one that fails."""
    finding = _judged_boundary(pool, bounds, variant)
    if finding.verdict is not Verdict.FAIL:
        return finding
    simplest = finding

    def fails(candidate: Bounds) -> bool:
        nonlocal simplest
        found = _judged_boundary(pool, [candidate], variant)
        if found.verdict is Verdict.FAIL:
            simplest = found
        return found.verdict is Verdict.FAIL

    shrink(schedules(), fails, len(bounds), seed)
    return replace(simplest, compared=finding.compared)


def _judged_boundary(pool: RankPool, bounds: Sequence[Bounds], variant: str) -> Finding:
    return judge_boundary(bounds, pool.run(decide, list(bounds), variant, name="guided steps", timeout=60.0))


def _save(job: FuzzJob, backend: str, findings: Sequence[Finding]) -> dict[str, str]:
    replays = {}
    for finding in findings:
        if finding.verdict is Verdict.FAIL and "case" in finding.data:
            data = finding.data["case"]
            case = Bounds.from_dict(data) if "num_timesteps" in data else Case.from_dict(data)
            saved = Saved(finding.name, finding.summary, job.combine, job.world_size, job.device, backend, case)
            replays[finding.name] = replay_command(saved.write(job.save))
    return replays


def run_replay(path: str, **changes: Any) -> Fuzz:
    """Evaluates a saved case again in the setting that it was saved with, except for ``changes``.

    Raises:
        BadInput: the file is no saved case, or the setting cannot be used.
    """
    began = time.monotonic()
    saved = read_saved(path)
    setting: dict[str, Any] = {"combine": saved.combine, "world_size": saved.world_size, "device": saved.device}
    job = FuzzJob(**(setting | {"backend": saved.backend, "cases": 1} | changes)).checked()

    def again(pool: RankPool) -> _Found:
        environment = pool.run(describe)
        findings = _replayed(pool, job, saved)
        replays = {f.name: replay_command(Path(path)) for f in findings if f.verdict is Verdict.FAIL}
        return _Found(findings, 1, environment, replays)

    return _on_ranks(job, again, began)


def _replayed(pool: RankPool, job: FuzzJob, saved: Saved) -> list[Finding]:
    """Every property that concerns the case, the one that it was saved for first."""
    if isinstance(saved.case, Bounds):
        return [_judged_boundary(pool, [saved.case], saved.combine.removeprefix(MUTANT))]
    fuzzer = Fuzzer(pool, job.combine)
    fuzzer.judge([saved.case])
    if saved.broken == EXACT:
        fuzzer.judge_exact([answer_to(saved.case)])
    found = [f for f in fuzzer.findings(job.device) if f.verdict is not Verdict.UNKNOWN]
    return sorted(found, key=lambda finding: finding.name != saved.broken)
