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
from verify.verdict import Verdict


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
    """A wrong combine. ``properties``: those that saw it, each with the number of the case; empty if none did."""

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


class Condition(Part, frozen=True):
    """One setting, on one computation in one dtype; see :class:`verify.envelope.measure.Measured`."""

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
