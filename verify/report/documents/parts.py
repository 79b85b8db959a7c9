"""What documents of several kinds have in common. A type here is validation, JSON Schema and documentation at once."""

from __future__ import annotations

import math
import os
import subprocess
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct
from msgspec.structs import replace

from verify.verdict import EXIT_STATUS, Divergence, Finding, Verdict, merge

# Raised whenever the shape of any document changes; former.py reads the one before.
SCHEMA: Final = 2

Count = Annotated[int, Meta(ge=0)]
Steps = Annotated[int, Meta(ge=0, le=100_000)]
Text = Annotated[str, Meta(min_length=1)]
Hexadecimal = Annotated[str, Meta(pattern="^0x[0-9a-f]+$")]
WorldSize = Annotated[int, Meta(ge=1, le=4096)]
Backend = Literal["", "gloo", "nccl"]
Device = Literal["cpu", "cuda"]
# What one rank ran on; which properties there are depends on the machine and the target.
Environment = dict[str, Any]


class Part(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A JSON object with exactly these keys."""


class Made(Part, frozen=True):
    """When and from what a document was made."""

    date: str
    version: str
    commit: str

    @classmethod
    def now(cls) -> Made:
        """The time in UTC, this package's version, and the commit of the current folder where it is in a checkout."""
        from verify import __version__

        return cls(date=datetime.now(UTC).isoformat(" ", "seconds"), version=__version__, commit=_commit(os.getcwd()))


@lru_cache
def _commit(folder: str) -> str:
    command = ["git", "-C", folder, "rev-parse", "--short=12", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


class Document(Part, frozen=True, tag_field="kind"):
    """What every document holds.

    Attributes:
        schema: the number of the shape.
        command: what reproduces it.
        made: when and from what; None in documents of the former schema.
        environment: what each rank ran on, in rank order.
        notes: what a reader must know beside the result.
    """

    schema: Literal[2]
    command: str
    made: Made | None
    environment: tuple[Environment, ...]
    notes: tuple[str, ...]

    @property
    def exit_status(self) -> int:
        """What the command ends with: 0 pass, 1 fail, 3 unknown; 0 for a document that judges nothing."""
        return EXIT_STATUS[getattr(self, "verdict", Verdict.PASS)]


def head(
    command: str, environment: Iterable[Mapping[str, Any]] = (), notes: Iterable[str] = (), made: Made | None = None
) -> dict[str, Any]:
    """The fields that every document begins with, for one that is made now."""
    return {
        "schema": SCHEMA,
        "command": command,
        "made": made or Made.now(),
        "environment": tuple(finite(rank) for rank in environment),
        "notes": tuple(notes),
    }


class Compared(Part, frozen=True):
    """How much a check looked at."""

    steps: Count
    elements: Count


class FirstDivergence(Part, frozen=True):
    """Where a check broke; see :class:`verify.verdict.Divergence`. NaN and infinities are strings."""

    step: Annotated[int, Meta(ge=-1)] | None
    ranks: tuple[Count, Count]
    tensor: str
    sides: tuple[str, str] | None = None
    index: tuple[Count, ...] | None = None
    bits: tuple[Hexadecimal, Hexadecimal] | None = None
    values: tuple[int | float | str, int | float | str] | None = None
    ulp: Count | None = None
    max_ulp: Count | None = None
    mismatched: Count | None = None
    of: Count | None = None
    replicas: tuple[Count, Count] | None = None

    @classmethod
    def of_divergence(cls, divergence: Divergence) -> FirstDivergence:
        """The JSON form of what a check found."""
        d = divergence.difference
        made = cls(
            step=divergence.step,
            ranks=divergence.ranks,
            tensor=divergence.tensor,
            sides=divergence.sides,
            replicas=divergence.replicas,
        )
        if d is None:
            return made
        return replace(
            made,
            index=d.index,
            bits=d.bits,
            values=(finite(d.values[0]), finite(d.values[1])),
            ulp=d.ulp,
            max_ulp=d.max_ulp,
            mismatched=d.mismatched,
            of=d.of,
        )

    @property
    def numbers(self) -> tuple[float, float] | None:
        """Both values as numbers."""
        return None if self.values is None else (float(self.values[0]), float(self.values[1]))


class Check(Part, frozen=True):
    """What one check says of one loop; see :class:`verify.verdict.Finding`.

    ``data`` is evidence for pictures: what each check may put there is up to the check.
    """

    name: str
    loop: str
    verdict: Verdict
    summary: Text
    compared: Compared
    first_divergence: FirstDivergence | None
    details: tuple[str, ...]
    data: dict[str, Any]

    def __post_init__(self) -> None:
        if self.verdict.holds and self.compared.elements < 1:
            raise ValueError(f"{self.name} passed without having compared anything")
        if self.verdict.holds and self.first_divergence is not None:
            raise ValueError(f"{self.name} passed and names a divergence")

    @classmethod
    def of(cls, finding: Finding) -> Check:
        """The JSON form of a finding."""
        first = finding.first_divergence
        return cls(
            name=finding.name,
            loop=finding.loop,
            verdict=finding.verdict,
            summary=finding.summary,
            compared=Compared(steps=finding.compared.steps, elements=finding.compared.elements),
            first_divergence=None if first is None else FirstDivergence.of_divergence(first),
            details=tuple(finding.details),
            data=finite(finding.data),
        )


class RankReport(Part, frozen=True):
    """What became of one rank of a run that did not finish."""

    rank: Count
    state: Literal["died", "raised", "hung", "waiting", "finished"]
    what: str
    step: Annotated[int, Meta(ge=-1)]
    activity: str
    trace: str
    output: str
    where: str = ""


class Awaited(Part, frozen=True):
    """The first collective that some ranks called and others never joined."""

    collective: str
    waiting: Annotated[tuple[Count, ...], Meta(min_length=1)]
    missing: Annotated[tuple[Count, ...], Meta(min_length=1)]
    said: str


class Failure(Part, frozen=True):
    """Why a run did not finish."""

    task: str
    cause: str
    seconds: float
    ranks: Annotated[tuple[RankReport, ...], Meta(min_length=1)]
    awaited: Awaited | None = None


def merged_verdict(checks: Iterable[Finding | Check], failed: bool) -> Verdict:
    """What checks add up to. ``failed`` says that the run did not finish, so that it cannot pass."""
    merged = merge(check.verdict for check in checks)
    return Verdict.UNKNOWN if failed and merged.holds else merged


def require_merged(verdict: Verdict, checks: tuple[Check, ...], failure: Failure | None) -> None:
    """A document's verdict is what its checks add up to; what did not finish cannot pass.

    Raises:
        ValueError: it is another one.
    """
    merged = merged_verdict(checks, failure is not None)
    if verdict is not merged:
        unfinished = " and a run that did not finish" if failure is not None else ""
        raise ValueError(f"the verdict is {verdict}, but its {len(checks)} checks{unfinished} add up to {merged}")


def finite(value: Any) -> Any:
    """JSON values only: a float that JSON does not have becomes a string, ``nan``, ``inf`` or ``-inf``."""
    if isinstance(value, str):
        return str(value)  # torch.__version__ is of a class of its own.
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value
