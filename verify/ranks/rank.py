"""What a task is given on each rank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from verify.environment.watch import Held
from verify.ranks import settings
from verify.ranks.failure.status import StatusWriter
from verify.ranks.group import ProcessGroup


@dataclass
class Rank:
    """What a task is given.

    Attributes:
        rank: this rank's number.
        world_size: how many ranks there are.
        device: where its tensors belong.
        backend: gloo or nccl.
        group: the CFG-parallel group.
        status: to say where it is.
        memo: what tasks keep between calls: models, denoisers.
        expect: called before a task's work begins, with how many bytes of large tensors it is going to return, it has
            memory for them made ready meanwhile. They may turn out to be fewer, more or none.
        replica: which CFG-parallel group of several this is; None where there is one.
        held: the settings that each task begins with.
    """

    rank: int
    world_size: int
    device: torch.device
    backend: str
    group: ProcessGroup
    status: StatusWriter
    memo: dict[Any, Any] = field(default_factory=dict)
    expect: Callable[[int], None] = lambda size: None
    replica: int | None = None
    held: Held = field(default_factory=Held)

    def environment(self) -> dict[str, Any]:
        """What this rank runs on."""
        return settings.environment(self.device, self.backend)


Task = Callable[..., Any]
