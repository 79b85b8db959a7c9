"""Faults in what ranks send each other."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from verify.bits import bits_of
from verify.faults.registry import BEFORE, Wiring, changed_group, fault
from verify.protocols import Denoiser


@fault(source="vllm-project/vllm 53000, sg 32664", breaks="group", step=11, rank=0, caught_by="ranks_agree")
def gathered_slot_corrupted(wiring: Wiring) -> None:
    """One bit of one gathered element is wrong on rank 0."""

    def corrupt(slots: list[Tensor]) -> list[Tensor]:
        if wiring.at(11, 0) and slots:
            bits_of(slots[1])[4, 2] ^= 1 << 5
        return slots

    wiring.on_gather(corrupt)


@fault(source="vllm-project/vllm 53000, sg 32664", breaks="group", step=11, rank=1, caught_by="ranks_agree", image=True,
       least_ranks=3)  # fmt: skip
def gathered_img_slot_lost(wiring: Wiring) -> None:
    """Rank 1 finds zeros where img's velocity should be."""
    wiring.on_gather(lambda slots: [*slots[:2], torch.zeros_like(slots[2])] if wiring.at(11, 1) else slots)


@fault(source="vllm-project/vllm 53000, sg 32664", breaks="group", step=11, rank=1, caught_by="ranks_agree")
def gathered_slot_stale(wiring: Wiring) -> None:
    """Rank 1 reads rank 0's velocity of the step before."""
    kept: list[Tensor] = []

    def stale(slots: list[Tensor]) -> list[Tensor]:
        if wiring.at(11, 1):
            slots = [kept[0], *slots[1:]]
        kept[:] = [slots[0]]
        return slots

    wiring.on_gather(stale)


@fault(source="tenstorrent/tt-metal 57458", breaks="group", step=11, rank=1, caught_by="ranks_agree")
def gather_buffer_reused(wiring: Wiring) -> None:
    """The buffer of slot 0 has been overwritten with slot 1 before rank 1 reads it."""
    wiring.on_gather(lambda slots: [slots[1], *slots[1:]] if wiring.at(11, 1) else slots)


@fault(source="none public", breaks="group", step=0, rank=1, caught_by="ranks_agree")
def gathered_in_wrong_order_on_one_rank(wiring: Wiring) -> None:
    """Rank 1 reads the gathered branches in the wrong order."""
    wiring.on_gather(lambda slots: slots[::-1] if wiring.rank == 1 else slots)


@fault(source="none public", breaks="group", step=0, rank=None, caught_by="matches_reference")
def gathered_in_wrong_order(wiring: Wiring) -> None:
    """Every rank reads the gathered branches in the wrong order: all agree, all are wrong."""
    wiring.on_gather(lambda slots: slots[::-1])


@fault(source="none public", breaks="group", step=BEFORE, rank=1, caught_by="ranks_agree")
def initial_broadcast_missing(wiring: Wiring) -> None:
    """The initial noise is not shared."""
    before = wiring.group
    first = [True]

    def skip(tensor: Tensor, src: int = 0) -> Tensor:
        return tensor if first.pop() else before.broadcast(tensor, src)

    wiring.group = changed_group(before, broadcast=lambda tensor, src=0: skip(tensor, src))


@fault(source="pt 158903", breaks="noise", step=0, rank=0, caught_by="collectives")
def equal_noise_hides_missing_broadcast(wiring: Wiring) -> None:
    """The noise is not shared, and nobody can see it: every rank happens to hold the same."""
    generator = torch.Generator().manual_seed(1)
    wiring.x_0 = torch.randn(wiring.x_0.shape, generator=generator).to(wiring.x_0.device)
    wiring.group = changed_group(wiring.group, broadcast=lambda tensor, src=0: tensor)


@fault(source="sg 18975", breaks="group", step=0, rank=1, caught_by="parallelism_engaged")
def rank_from_wrong_group(wiring: Wiring) -> None:
    """Every rank believes that it is rank 0."""
    wiring.group = changed_group(wiring.group, rank=0)


@fault(source="NVIDIA/nccl 1497, 2360", breaks="group", step=0, rank=0, caught_by="collectives")
def gather_by_reduction(wiring: Wiring) -> None:
    """The gather is an all_reduce of slots that are zero elsewhere."""
    before = wiring.group

    def reduce(tensor: Tensor) -> list[Tensor]:
        slots = torch.zeros((before.world_size, *tensor.shape), dtype=tensor.dtype, device=tensor.device)
        slots[before.rank] = tensor
        dist.all_reduce(slots)
        return list(slots)

    wiring.group = changed_group(before, all_gather=reduce)


@fault(source="vo 3956, 1751", breaks="group", step=0, rank=1, caught_by="collectives")
def gather_in_another_dtype(wiring: Wiring) -> None:
    """Rank 1 sends its velocity in float16, and its peers read the bytes as bfloat16."""

    def cast(denoiser: Denoiser, x_t: Tensor, step: int, branch: str) -> Tensor:
        velocity = denoiser.velocity(x_t, step, branch)
        return velocity.half() if wiring.rank == 1 else velocity

    wiring.on_velocity(cast)
    wiring.on_gather(lambda slots: [slot.view(torch.bfloat16) for slot in slots])


@fault(source="none public", breaks="group", step=3, rank=0, caught_by="collectives")
def broadcast_added(wiring: Wiring) -> None:
    """A broadcast of x_t at one step that needs none."""
    group = wiring.group

    def evaluate(denoiser: Denoiser, x_t: Tensor, step: int, branch: str) -> Tensor:
        if step == 3:
            group.broadcast(x_t.clone())
        return denoiser.velocity(x_t, step, branch)

    wiring.on_velocity(evaluate)


@fault(source="vo 3382, 5804, 6312", breaks="group", step=0, rank=0, caught_by="parallelism_engaged")
def parallelism_ignored(wiring: Wiring) -> None:
    """The parallel setting is ignored: every rank evaluates every branch for itself."""

    denoiser, branches, rank = wiring.denoiser, wiring.request.branches, wiring.rank
    x_now: list[Tensor] = []

    def remember(inner: Denoiser, x_t: Tensor, step: int, branch: str) -> Tensor:
        x_now[:] = [x_t]
        return inner.velocity(x_t, step, branch)

    def alone(tensor: Tensor) -> list[Tensor]:
        return [
            tensor if branch == branches[rank] else denoiser.velocity(x_now[0], wiring.done, branch)
            for branch in branches
        ]

    wiring.on_velocity(remember)
    wiring.group = changed_group(wiring.group, all_gather=alone)
