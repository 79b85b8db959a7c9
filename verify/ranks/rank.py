"""What a task is given on each rank, and how it is run there."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch
import torch.distributed as dist

from verify.environment.watch import Held
from verify.ranks import settings
from verify.ranks.failure.answer import Answer, AnswerKind
from verify.ranks.failure.status import StatusWriter
from verify.ranks.group import ProcessGroup


@dataclass
class Rank:
    """What a task is given.

    Attributes:
        rank: its number in its CFG group.
        world_size: how many ranks that group has.
        device: where its tensors belong.
        backend: gloo or nccl.
        group: the CFG-parallel group.
        status: to say where it is.
        memo: what tasks keep between calls: models, denoisers.
        expect: a task may call it before its work begins, with the bytes of large tensors that it is going to return.
            The controller then makes memory ready meanwhile. The task may return fewer bytes, more or none.
        replica: which CFG-parallel group of several this is; None where there is one.
        held: the settings that each task begins with.
        world: the default group of torch.distributed, as the rank joined it.
        global_rank: its number among all processes; None where that is its number in the group.
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
    world: Any = None
    global_rank: int | None = None

    @property
    def damage(self) -> str:
        """What a task has done to this process so that it can run no other; empty if nothing."""
        if self.world is None or dist.group.WORLD is self.world:
            return ""
        replaced = dist.is_initialized()
        return f"the default group, which it {'replaced' if replaced else 'destroyed'}"

    def environment(self) -> dict[str, Any]:
        """What this rank runs on."""
        return settings.environment(self.device, self.backend)


Task = Callable[..., Any]


def seed(rank: int) -> None:
    """Seeds every generator that a loop might draw from, on each rank differently.

    Ranks are forked from one process and would otherwise all draw the same: a loop that forgets to share its noise
    would look right. From task to task the same, so that what is seen can be seen again.
    """
    random.seed(rank)
    numpy.random.seed(rank)
    torch.manual_seed(rank)


def run_task(task: Task, context: Rank, arguments: tuple[Any, ...]) -> Answer:
    """The answer to one task. Nothing that a task raises ends the rank: the controller decides that."""
    try:
        return Answer(AnswerKind.DONE, task(context, *arguments), spent=context.damage)
    except BaseException as error:  # SystemExit of a loop is a failure of that loop.
        return Answer.of_error(error)
    finally:
        context.held.restore()  # The next task begins as this one did.
