"""The controlling process: it draws cases, sends them to all ranks, judges the answers and shrinks what fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from verify.bits import describe, first_difference
from verify.fuzz.case import Case
from verify.fuzz.drawing import draw, shrink
from verify.fuzz.exact import ExactCase, exact_cases
from verify.fuzz.properties import FORMULA, REPEATABLE
from verify.fuzz.strategies import cases
from verify.fuzz.tasks import (
    COMPLETES,
    CONCURRENT,
    CUDA_GRAPH,
    EXACT,
    GATHERED,
    INPUTS_UNCHANGED,
    OWN,
    RANKS_AGREE,
    STREAM,
    BatchReport,
    evaluate,
    evaluate_exact,
    results,
)
from verify.ranks.local.pool import RankPool
from verify.verdict import Compared, Divergence, Finding, Verdict

# How many cases hypothesis draws at a time. It varies what it has drawn before, so small batches differ more.
BATCH = 128
# For one property, and for all of them: a broken combine breaks many properties.
_SHRINK_SECONDS, _ALL_SHRINK_SECONDS = 10.0, 30.0
_BATCH_TIMEOUT = 240.0

PROFILES = {"fast": 1024, "ci": 5120, "nightly": 24576}


@dataclass(frozen=True)
class Failure:
    """A property that does not hold of a case.

    Attributes:
        name: the property's name.
        case: the case that breaks it.
        text: what is wrong.
        divergence: where it is wrong, if two tensors were compared.
        number: how many cases had been evaluated, this one included.
    """

    name: str
    case: Case
    text: str
    divergence: Divergence | None
    number: int


@dataclass
class Tally:
    """What a run of cases has shown so far."""

    cases: int = 0
    compared: dict[str, Compared] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)
    failed_cases: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, number_of_cases: int, elements: int) -> None:
        """Notes that a property was judged. ``Compared.steps`` counts the cases."""
        before = self.compared.get(name, Compared())
        self.compared[name] = Compared(before.steps + number_of_cases, before.elements + elements)


def property_names(device: str) -> list[str]:
    """Every property that is judged on ``device``, in the order of reports."""
    shared = [EXACT, COMPLETES, RANKS_AGREE, GATHERED, *REPEATABLE, INPUTS_UNCHANGED, CONCURRENT]
    return [*shared, *((STREAM, CUDA_GRAPH) if device == "cuda" else ()), *FORMULA]


class Fuzzer:
    """Evaluates cases on a pool's ranks."""

    def __init__(self, pool: RankPool, combine: str = OWN) -> None:
        self.pool = pool
        self.combine = combine
        self.tally = Tally()
        self._shrink_left = _ALL_SHRINK_SECONDS

    def judge(self, batch: Sequence[Case], keep: bool = True) -> list[Failure]:
        """Evaluates a batch on every rank. With ``keep`` the tally counts it.

        Raises:
            RankFailure: a rank died or hung.
        """
        reports: list[BatchReport] = self.pool.run(
            evaluate, list(batch), self.combine, name="fuzz", timeout=_BATCH_TIMEOUT
        )
        failures = self._problems(batch, reports)
        for number in range(len(batch)):
            digests = [report.digests[number] for report in reports]
            if len(set(digests)) > 1 and all(all(pair) for pair in digests):
                # Results are fetched for one case only: fetching all of them would take longer than the search.
                known = any(failure.name == RANKS_AGREE for failure in failures)
                place = self._failure(RANKS_AGREE, batch, number, "ranks gave other bits for the same inputs", None)
                failures.append(place if known else self._disagreement(batch, number))
        failures.sort(key=lambda failure: failure.number)
        if keep:
            self._count(batch, reports, failures)
        return failures

    def judge_exact(self, chosen: Sequence[ExactCase]) -> list[Failure]:
        """Compares each rank's results with the one right answer."""
        batch = [exact.case for exact in chosen]
        answers = [exact.expected for exact in chosen]
        reports: list[BatchReport] = self.pool.run(
            evaluate_exact, batch, answers, self.combine, name="exact cases", timeout=_BATCH_TIMEOUT
        )
        failures = self._problems(batch, reports)
        self._count(batch, reports, failures)
        return failures

    def _problems(self, batch: Sequence[Case], reports: Sequence[BatchReport]) -> list[Failure]:
        """What the ranks report, by case."""
        failures = [
            self._failure(p.name, batch, p.case, p.text, _where(rank, p.name, p.difference))
            for rank, report in enumerate(reports)
            for p in report.problems
        ]
        return sorted(failures, key=lambda failure: failure.number)

    def _failure(
        self, name: str, batch: Sequence[Case], number: int, text: str, divergence: Divergence | None
    ) -> Failure:
        return Failure(name, batch[number], text, divergence, self.tally.cases + number + 1)

    def _disagreement(self, batch: Sequence[Case], number: int) -> Failure:
        """Fetches the results themselves and finds where they differ."""
        by_rank = self.pool.run(results, batch[number], self.combine, name="fuzz", timeout=_BATCH_TIMEOUT)
        text, divergence = "ranks gave other bits for the same inputs", None
        for rank, theirs in enumerate(by_rank[1:], start=1):
            for mine, other, kind in zip(by_rank[0], theirs, ("", " on fresh tensors"), strict=True):
                if (mine.shape, mine.dtype) != (other.shape, other.dtype):
                    text = f"rank 0 returns {describe(mine)}, rank {rank} {describe(other)}"
                    return self._failure(RANKS_AGREE, batch, number, text, None)
                difference = first_difference(mine, other)
                if difference is not None:
                    divergence = Divergence(None, (0, rank), f"result{kind}", None, difference)
                    return self._failure(RANKS_AGREE, batch, number, f"{text}{kind}", divergence)
        return self._failure(RANKS_AGREE, batch, number, f"{text}, and not when asked again", None)

    def _count(self, batch: Sequence[Case], reports: Sequence[BatchReport], failures: Sequence[Failure]) -> None:
        tally = self.tally
        names = dict.fromkeys(name for report in reports for name in report.elements)
        for name in names:
            by_case: dict[int, int] = {}
            for report in reports:
                for number, elements in report.elements.get(name, {}).items():
                    by_case[number] = by_case.get(number, 0) + elements
            tally.add(name, len(by_case), sum(by_case.values()))
        if len(reports) > 1 and reports[0].digests:
            sized = [case.size for case in batch if case.size]
            tally.add(RANKS_AGREE, len(sized), sum(sized) * len(reports))
        tally.add(COMPLETES, len(batch), len(batch))
        for failure in failures:
            tally.failures.setdefault(failure.name, failure)
        for name, _ in {(failure.name, failure.number) for failure in failures}:
            tally.failed_cases[name] = tally.failed_cases.get(name, 0) + 1
        tally.cases += len(batch)

    def explore(
        self,
        count: int,
        base_seed: int,
        tick: Callable[[int], None] = lambda done: None,
        stop_at_failure: bool = False,
    ) -> None:
        """Draws and evaluates ``count`` cases, and shrinks the first failing case of each property.

        The exact cases come last, so that what only they show does not hide what the properties show.
        """
        for first in range(0, count, BATCH):
            size, batch_seed = min(BATCH, count - first), base_seed * 1_000_003 + first // BATCH
            known = set(self.tally.failures)
            batch = draw(cases(), size, batch_seed)
            self.judge(batch)
            if stop_at_failure and self.tally.failures:
                return
            for name in [name for name in self.tally.failures if name not in known]:
                # Now, while the batch in which the property first failed is at hand.
                self._shrink(name, batch, size, batch_seed)
            tick(first + size)
        self.judge_exact(exact_cases())

    def _shrink(self, name: str, drawn: Sequence[Case], count: int, batch_seed: int) -> None:
        """Replaces the failure of ``name`` with the simplest one that hypothesis finds."""
        found = self.tally.failures[name]
        passed = set(drawn[: drawn.index(found.case)])
        simplest = found
        began = time.monotonic()
        deadline = began + min(_SHRINK_SECONDS, self._shrink_left)

        def fails(case: Case) -> bool:
            nonlocal simplest
            if case in passed or time.monotonic() > deadline:
                return False
            failures = [f for f in self.judge([case], keep=False) if f.name == name]
            if failures:
                first = failures[0]
                simplest = Failure(name, case, first.text, first.divergence, found.number)
            return bool(failures)

        shrink(cases(), fails, count, batch_seed)
        self._shrink_left -= time.monotonic() - began
        self.tally.failures[name] = simplest

    def findings(self, device: str) -> list[Finding]:
        """One finding per property. It is unknown where nothing was compared."""
        return [self._finding(name) for name in property_names(device)]

    def _finding(self, name: str) -> Finding:
        compared = self.tally.compared.get(name, Compared())
        failure = self.tally.failures.get(name)
        if failure is not None:
            failed = self.tally.failed_cases.get(name, 1)
            return Finding(
                name,
                "combine",
                Verdict.FAIL,
                failure.text.strip().splitlines()[-1],
                compared,
                failure.divergence,
                details=(f"{failed} of {compared.steps} cases fail, the first is number {failure.number}",
                         f"simplest: {failure.case}",
                         *failure.text.strip().splitlines()[:-1]),
                data={"case": failure.case.explicit().to_dict(), "first_failing_case": failure.number},
            )  # fmt: skip
        if not compared.elements:
            return Finding(name, "combine", Verdict.UNKNOWN, "no drawn case concerns this property", compared)
        return Finding(name, "combine", Verdict.PASS, f"holds for {compared.steps:,} cases", compared)


def _where(rank: int, name: str, difference: Any) -> Divergence | None:
    if difference is None:
        return None
    sides = ("seen", "exact" if name == EXACT else "expected")
    return Divergence(None, (rank, rank), "result", sides, difference)
