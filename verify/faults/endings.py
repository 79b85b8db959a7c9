"""Faults after which a loop does not end."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import Any
from unittest import mock

from torch import Tensor

from verify.faults.registry import UNKNOWN, Wiring, fault
from verify.protocols import Denoiser, Group, State


@fault(
    source="vo 6180, 6228",
    breaks="ending",
    step=15,
    rank=1,
    caught_by="collectives",
    stuck_in="all_gather 1 of step 40",
)
def rank_local_skip(wiring: Wiring) -> None:
    """Rank 1 decides by itself to skip a guided step; its peers wait in a collective."""
    _skip(wiring, 15, 1)


@fault(source="vo 6180, 6228", breaks="ending", step=0, rank=2, caught_by="collectives", image=True, least_ranks=3,
       stuck_in="all_gather 1 of step 40")  # fmt: skip
def img_rank_skips_first_step(wiring: Wiring) -> None:
    """Rank 2 decides by itself to skip the very first step."""
    _skip(wiring, 0, 2)


def _skip(wiring: Wiring, step: int, rank: int) -> None:
    if wiring.rank == rank:
        schedule = wiring.request.schedule
        wiring.use_schedule(replace(schedule, guided=(*schedule.guided[:step], False, *schedule.guided[step + 1 :])))


@fault(
    source="sg 26923, vllm-project/vllm 48720",
    breaks="ending",
    step=21,
    rank=1,
    caught_by="schedule",
    stuck_in="all_gather 1 of step 21",
)
def early_return(wiring: Wiring) -> None:
    """Rank 1 returns early, and its peers wait in the next collective."""
    loop = wiring.loop

    def early(denoiser: Denoiser, request: Any, x_0: Tensor, group: Group, observe: Any) -> Tensor:
        class Enough(Exception):
            pass

        last = x_0

        def stop(step: int, x_t: Tensor, state: State = None) -> None:
            nonlocal last
            observe(step, x_t, state)
            last = x_t
            if step == 20 and wiring.rank == 1:
                raise Enough

        try:
            return loop(denoiser, request, x_0, group, stop)
        except Enough:
            return last

    wiring.loop = early


@fault(
    source="pt 155558, 130935", breaks="ending", step=3, rank=1, caught_by=UNKNOWN, stuck_in="all_gather 1 of step 3"
)
def one_rank_compiles(wiring: Wiring) -> None:
    """Rank 1 compiles, for longer than anybody waits."""

    def compile_first(denoiser: Denoiser, x_t: Tensor, step: int, branch: str) -> Tensor:
        if wiring.at(3, 1):
            time.sleep(3600)
        return denoiser.velocity(x_t, step, branch)

    wiring.on_velocity(compile_first)


@fault(
    source="vo 3956, 1751",
    breaks="ending",
    step=8,
    rank=None,
    caught_by=UNKNOWN,
    # Over NCCL, sizes that differ do not hang. The check compares each rank's call with rank 0's.
    or_by="collectives",
    or_rank=1,
    base="broadcast",
    stuck_in="broadcast 2 of step 8",
)
def broadcast_in_another_dtype(wiring: Wiring) -> None:
    """Rank 0 lifts x_t to float64 before a broadcast, and its peers expect half as many bytes."""

    def lift(group: Group, tensor: Tensor) -> Tensor:
        if wiring.at(8, 0):
            group.broadcast(tensor.double())
            return tensor
        return group.broadcast(tensor)

    wiring.on_broadcast(lift)


@fault(source="vo 6359 (review)", breaks="ending", step=0, rank=1, caught_by=UNKNOWN)
def branch_inputs_missing(wiring: Wiring) -> None:
    """CFG is on and rank 1's branch has no inputs."""
    if wiring.rank == 1:
        contexts: Any = getattr(wiring.denoiser, "contexts")  # noqa: B009  (not part of what a loop may rely on)
        wiring.patches.enter_context(mock.patch.dict(contexts, {"text": None}))


@fault(source="sg 23736", breaks="ending", step=0, rank=None, caught_by=UNKNOWN, base="round_robin", extra_ranks=1)
def more_ranks_than_branches(wiring: Wiring) -> None:
    """The rank that has no branch indexes an empty list."""
    own = list(wiring.request.branches[wiring.rank :: wiring.group.world_size])

    def index(denoiser: Denoiser, x_t: Tensor, step: int, branch: str) -> Tensor:
        return denoiser.velocity(x_t, step, own[0] if wiring.request.schedule.guided[step] else branch)

    wiring.on_velocity(index)


@fault(source="vo 6180, 6228", breaks="ending", step=12, rank=1, caught_by=UNKNOWN)
def rank_dies(wiring: Wiring) -> None:
    """Rank 1 is gone in the middle of a step."""

    def die(denoiser: Denoiser, x_t: Tensor, step: int, branch: str) -> Tensor:
        if wiring.at(12, 1):
            os._exit(13)
        return denoiser.velocity(x_t, step, branch)

    wiring.on_velocity(die)
