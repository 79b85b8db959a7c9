"""The document of ``verify run``."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from verify.report.documents.parts import (
    Backend,
    Check,
    Count,
    Device,
    Document,
    Failure,
    Part,
    Steps,
    WorldSize,
    require_merged,
)
from verify.report.documents.rounding import Rounding
from verify.verdict import Verdict


class Schedule(Part, frozen=True):
    """How many Euler steps there are, and in how many of them guidance applies."""

    steps: Steps
    guided_steps: Steps


class Replica(Part, frozen=True):
    """The ranks of one copy of the CFG group, by global number, and their hosts."""

    replica: Count
    ranks: Annotated[tuple[Count, ...], Meta(min_length=1)]
    hosts: Annotated[tuple[str, ...], Meta(min_length=1)]


class Judged(Part, frozen=True):
    """One request of several: its fields, whether it is the first one again, and its verdict or why it was refused."""

    request: dict[str, Any]
    again: bool
    verdict: Verdict | None
    refused: str


class Picture(Part, frozen=True):
    """What the final latent stands for.

    Attributes:
        loop: whose latent.
        png: rank 0's picture, a PNG file as a data URI.
        sha256: of each rank's file, in rank order.
        note: what its reader must know.
    """

    loop: str
    png: Annotated[str, Meta(pattern="^data:image/png;base64,[A-Za-z0-9+/]+=*$")]
    sha256: tuple[str, ...]
    note: str = ""


class Run(Document, frozen=True, tag="run"):
    """What a run found; see :class:`verify.runner.run_report.RunReport`.

    ``request`` holds what the target was asked for and with which network: which keys there are is up to the target.
    """

    verdict: Verdict
    target: str
    request: dict[str, Any]
    schedule: Schedule
    world_size: WorldSize
    backend: Backend
    device: Device
    checks: tuple[Check, ...]
    collectives: dict[str, dict[str, Count]]
    timings: dict[str, float]
    failure: Failure | None
    replicas: tuple[Replica, ...] = ()
    requests: tuple[Judged, ...] = ()
    picture: Picture | None = None
    rounding: tuple[Rounding, ...] = ()

    def __post_init__(self) -> None:
        require_merged(self.verdict, self.checks, self.failure)
        for number, rank in enumerate(self.environment):
            if not isinstance(rank.get("rank"), int):
                raise ValueError(f"environment[{number}] does not name its rank")
