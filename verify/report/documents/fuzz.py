"""The documents of ``verify fuzz``: properties of a combine, mutants of it, and the envelope of settings."""

from __future__ import annotations

from typing import Literal

from verify.report.documents.parts import (
    Backend,
    Check,
    Count,
    Device,
    Document,
    Failure,
    Part,
    WorldSize,
    require_merged,
)
from verify.verdict import EXIT_STATUS, Verdict


class Fuzz(Document, frozen=True, tag="fuzz"):
    """What fuzzing a combine found.

    ``compared.steps`` of a property counts cases. ``replays`` holds, for each property that failed, the command that
    evaluates the failing case again.
    """

    verdict: Verdict
    profile: str
    seed: Count
    combine: str
    world_size: WorldSize
    backend: Backend
    device: Device
    cases: Count
    cases_per_minute: float
    properties: tuple[Check, ...]
    replays: dict[str, str]
    failure: Failure | None
    timings: dict[str, float]

    def __post_init__(self) -> None:
        require_merged(self.verdict, self.properties, self.failure)


class Mutant(Part, frozen=True):
    """A wrong combine.

    Attributes:
        mutant: its name.
        what: what is wrong with it.
        cases_needed: the number of the first case that shows it; None if none does.
        properties: those that failed, each with the number of its first case; empty if none did.
    """

    mutant: str
    what: str
    cases_needed: Count | None
    properties: dict[str, Count]


class Mutants(Document, frozen=True, tag="mutants"):
    """How wrong combines fared. ``notes`` say why not all were fuzzed, if so."""

    profile: str
    seed: Count
    device: Device
    mutants: tuple[Mutant, ...]
    timings: dict[str, float]

    @property
    def verdict(self) -> Verdict:
        """Fail if a mutant was not caught; unknown if not all were tried."""
        if not all(mutant.properties for mutant in self.mutants):
            return Verdict.FAIL
        return Verdict.UNKNOWN if self.notes else Verdict.PASS


class Condition(Part, frozen=True):
    """What one condition does to one computation.

    Attributes:
        subject: the computation: ``combine`` or ``forward``.
        condition: one of :data:`verify.envelope.conditions.CONDITIONS`.
        dtype: of the velocities, or of the network.
        verdict: ``bitwise``: equal bytes. ``within``: at most ``max_ulp`` ULPs apart, less than a factor of two.
            ``differs``: further apart, of another dtype, or a NaN. The worst over all settings and variants.
        worst: the setting and variant with that verdict. The fields from ``max_ulp`` to ``relative`` are about it.
        affected: the variants that are not bitwise, each with its settings.
        variants: how many were measured.
        max_ulp: the greatest distance in ULPs; None where such a distance means nothing.
        mismatched, of: how many elements differ, of how many.
        max_abs: the greatest absolute difference.
        relative: ``max_abs`` over the greatest element without the condition.
        note: why the verdict is ``unknown``, or what else to know.
        applies: False where the machine lacks what the condition needs.
        seconds: how long it took.
        explanation: why the condition changes bits; empty where it does not.
    """

    subject: str
    condition: str
    dtype: str
    verdict: Literal["bitwise", "within", "differs", "unknown"]
    worst: str
    affected: tuple[str, ...]
    variants: Count
    max_ulp: Count | None
    mismatched: Count
    of: Count
    max_abs: float | None
    relative: float | None
    note: str
    applies: bool
    seconds: float
    explanation: str


class Envelope(Document, frozen=True, tag="envelope"):
    """Which settings change the bits of the combine and of a forward pass. It judges nothing."""

    device: Device
    preset: str
    rows: tuple[Condition, ...]
    timings: dict[str, float]

    @property
    def exit_status(self) -> int:
        """0 if every condition that this machine can bring about was measured, else 3."""
        missing = not self.rows or any(row.verdict == "unknown" and row.applies for row in self.rows)
        return EXIT_STATUS[Verdict.UNKNOWN if missing else Verdict.PASS]
