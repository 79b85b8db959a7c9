"""What a rank runs and on what, known before any loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from verify.environment.identity import Identity
from verify.environment.watch import Seen


class Conditions(Protocol):
    """What is compared between ranks: of a trace, or of a rank that has traced nothing yet."""

    @property
    def rank(self) -> int:
        """Its number."""
        ...

    @property
    def environment(self) -> Mapping[str, Any]:
        """What it runs on, and how."""
        ...

    @property
    def identity(self) -> Identity | None:
        """Which code it runs."""
        ...

    @property
    def settings(self) -> Seen | None:
        """What was set before, during and after a loop."""
        ...


@dataclass(frozen=True)
class AtStart:
    """The conditions of a rank that has run no loop."""

    rank: int
    environment: Mapping[str, Any]
    identity: Identity | None = None
    settings: Seen | None = None
