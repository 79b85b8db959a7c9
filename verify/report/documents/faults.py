"""The document of ``verify faults``."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from verify.report.documents.parts import Count, Device, Document, Part, WorldSize
from verify.verdict import Verdict

Step = Annotated[int, Meta(ge=-1)]


class Expected(Part, frozen=True):
    """Which check must catch a fault, and what its finding must name."""

    check: str
    step: Step | None
    rank: Count | None
    collective: str = ""


class Injected(Part, frozen=True):
    """How the suite judged one fault.

    Attributes:
        fault: its name; ``clean`` for the control, a run without a fault.
        summary, source, breaks: what is known of it: what goes wrong, who reported it, what it breaks.
        expected: what a run that ended as this one did must find; None for the control.
        verdict: of the run.
        fired: the checks that failed, the expected one first.
        step, rank, collective: what the report names; None or empty if it names none.
        seconds: how long it took to the verdict.
        caught: whether the expected check failed.
        placed: whether step and rank are the injected ones, and for a fault that hangs the collective too.
        message: the first line of evidence.
    """

    fault: str
    summary: str
    source: str
    breaks: str
    expected: Expected | None
    verdict: Verdict
    fired: tuple[str, ...]
    step: Step | None
    rank: Count | None
    seconds: float
    caught: bool
    placed: bool
    message: str
    collective: str = ""


class Faults(Document, frozen=True, tag="faults"):
    """Every fault that was injected. The verdict is pass if each was caught where it was injected."""

    verdict: Verdict
    world_size: WorldSize
    device: Device
    seconds: float
    faults: Annotated[tuple[Injected, ...], Meta(min_length=1)]

    def __post_init__(self) -> None:
        good = all(row.caught and row.placed for row in self.faults)
        if self.verdict is not (Verdict.PASS if good else Verdict.FAIL):
            raise ValueError(f"the verdict is {self.verdict}, but {'every' if good else 'not every'} fault was caught")
