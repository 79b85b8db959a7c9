"""Documents that this repository's own tests write: an engine's loop with faults in it, and mutation testing."""

from __future__ import annotations

from msgspec import field

from verify.report.documents.parts import Count, Document, Part
from verify.verdict import Verdict


class Control(Part, frozen=True):
    """One fault in an engine's own loop."""

    release: str
    ranks: Count
    what_is_wrong: str = field(name="what is wrong")
    verdict: Verdict
    checks_that_failed: tuple[str, ...] = field(name="checks that failed")
    first_at_step: int | str | None = field(name="first at step")
    between_ranks: tuple[Count, ...] | None = field(name="between ranks")


class Controls(Document, frozen=True, tag="upstream"):
    """Faults in an engine's own loop, and what saw them."""

    controls: tuple[Control, ...]


class MutatedFile(Part, frozen=True):
    """How the mutants of one file fared."""

    file: str
    mutants: Count
    killed: Count
    timed_out: Count
    survived: Count
    explained: Count
    score: float | str | None = field(name="score_%")


class Survivor(Part, frozen=True):
    """A change of the code that no test notices, and why."""

    file: str
    line: Count
    mutation: str
    why_nothing_notices: str


class Mutation(Document, frozen=True, tag="mutation"):
    """Mutation testing of this package."""

    verdict: Verdict
    tool: str
    mutants: Count
    killed: Count
    timed_out: Count
    explained: Count
    score: str
    files: tuple[MutatedFile, ...]
    survivors: tuple[Survivor, ...]
    minutes: float | None = None
