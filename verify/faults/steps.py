"""Faults in ``x_t`` itself: the smallest differences, at every edge of a run."""

from __future__ import annotations

import torch
from torch import Tensor

from verify.faults.registry import Wiring, fault
from verify.protocols import State

_ULP = "pytorch/torchtitan 4454"


def _bump(wiring: Wiring, step: int, rank: int, index: tuple[int, int] = (3, 5)) -> None:
    """Moves one element to its neighbour in float32."""

    def change(at: int, x_t: Tensor) -> Tensor:
        if (at, wiring.rank) == (step, rank):
            x_t = x_t.clone()
            x_t.view(torch.int32)[index] += 1
        return x_t

    wiring.after_step(change)


def _set(wiring: Wiring, step: int, patterns: dict[int, int]) -> None:
    """Sets one element's bits after ``step``, on each rank to its own pattern, if it has one."""

    def change(at: int, x_t: Tensor) -> Tensor:
        if at == step and wiring.rank in patterns:
            x_t = x_t.clone()
            x_t.view(torch.int32)[2, 1] = patterns[wiring.rank]
        return x_t

    wiring.after_step(change)


@fault(source=_ULP, breaks="loop", step=0, rank=1, caught_by="ranks_agree")
def one_ulp_first_step(wiring: Wiring) -> None:
    """One element of x_t is one ULP off, after the first step."""
    _bump(wiring, 0, 1)


@fault(source=_ULP, breaks="loop", step=20, rank=1, caught_by="ranks_agree")
def one_ulp_middle_step(wiring: Wiring) -> None:
    """One element of x_t is one ULP off, in the middle."""
    _bump(wiring, 20, 1)


@fault(source=_ULP, breaks="loop", step=48, rank=1, caught_by="ranks_agree")
def one_ulp_last_step(wiring: Wiring) -> None:
    """One element of x_t is one ULP off, after the last step."""
    _bump(wiring, 48, 1)


@fault(source=_ULP, breaks="loop", step=20, rank=0, caught_by="ranks_agree")
def one_ulp_on_rank_0(wiring: Wiring) -> None:
    """One element of x_t is one ULP off on rank 0, which others are often compared with."""
    _bump(wiring, 20, 0)


@fault(source=_ULP, breaks="loop", step=44, rank=1, caught_by="ranks_agree")
def one_ulp_unguided_step(wiring: Wiring) -> None:
    """One element of x_t is one ULP off, outside the CFG interval, where nothing is exchanged."""
    _bump(wiring, 44, 1)


@fault(source=_ULP, breaks="loop", step=20, rank=1, caught_by="ranks_agree")
def one_ulp_last_element(wiring: Wiring) -> None:
    """The very last element of x_t is one ULP off."""
    _bump(wiring, 20, 1, (-1, -1))


@fault(source="DESIGN, +0.0 == -0.0", breaks="loop", step=48, rank=None, caught_by="ranks_agree")
def sign_of_zero(wiring: Wiring) -> None:
    """An element is +0.0 on rank 0 and -0.0 on rank 1: equal to ==, not to bytes."""
    _set(wiring, 48, {rank: -(2**31) if rank == 1 else 0 for rank in range(wiring.group.world_size)})


@fault(source="DESIGN, NaN payloads", breaks="loop", step=48, rank=None, caught_by="ranks_agree")
def nan_payload(wiring: Wiring) -> None:
    """An element is NaN on every rank, with another payload on rank 1."""
    _set(wiring, 48, {rank: 0x7FC00000 + (rank == 1) for rank in range(wiring.group.world_size)})


@fault(source="DESIGN, equal NaNs", breaks="loop", step=30, rank=None, caught_by="finite")
def one_nan_everywhere(wiring: Wiring) -> None:
    """An element is the same NaN on every rank."""
    _set(wiring, 30, dict.fromkeys(range(wiring.group.world_size), 0x7FC00000))


@fault(source="vo 3956, 1751", breaks="loop", step=6, rank=1, caught_by="ranks_agree")
def x_t_rounded_to_bf16(wiring: Wiring) -> None:
    """Rank 1 keeps x_t in bf16 for one step."""
    wiring.after_step(lambda at, x_t: x_t.bfloat16().float() if (at, wiring.rank) == (6, 1) else x_t)


@fault(source="vo 1729, sg 20118", breaks="noise", step=5, rank=None, caught_by="ranks_agree")
def per_rank_rng(wiring: Wiring) -> None:
    """Noise inside the loop comes from each rank's own generator."""
    generator = torch.Generator().manual_seed(wiring.rank)

    def add(at: int, x_t: Tensor) -> Tensor:
        return x_t + 1e-3 * torch.randn(x_t.shape, generator=generator).to(x_t.device) if at == 5 else x_t

    wiring.after_step(add)


@fault(source="pt 192920, 159548", breaks="group", step=6, rank=1, caught_by="ranks_agree", base="broadcast")
def non_contiguous_broadcast(wiring: Wiring) -> None:
    """Rank 1's x_t is laid out column by column, and the broadcast fills it row by row."""

    def scramble(at: int, x_t: Tensor) -> Tensor:
        return x_t.clone().reshape(x_t.shape[::-1]).t() if (at, wiring.rank) == (6, 1) else x_t

    wiring.after_step(scramble)


@fault(source="none public", breaks="loop", step=8, rank=None, caught_by="observed")
def shows_another_x_t(wiring: Wiring) -> None:
    """The loop shows one x_t and goes on with another."""
    observe = wiring.observe

    def show(step: int, x_t: Tensor, state: State = None) -> None:
        observe(step, x_t.clone(), state)
        if step == 7:
            x_t.mul_(1.01)

    wiring.observe = show


@fault(source=_ULP, breaks="loop", step=20, rank=2, caught_by="ranks_agree", image=True, least_ranks=3)
def one_ulp_on_rank_2(wiring: Wiring) -> None:
    """One element of x_t is one ULP off on the rank of image guidance."""
    _bump(wiring, 20, 2)


@fault(source="DESIGN, NaN payloads", breaks="loop", step=0, rank=1, caught_by="ranks_agree")
def one_nan_on_one_rank(wiring: Wiring) -> None:
    """An element is a NaN on rank 1 alone, after the first step."""
    _set(wiring, 0, {1: 0x7FC00000})
