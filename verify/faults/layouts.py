"""Faults of engines with shards, padding ranks and sums: injected into the small engines of ``engines.py``."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from verify.bits import bits_of
from verify.faults.engines import gathered
from verify.faults.registry import BEFORE, Wiring, changed_group, fault
from verify.layout import Layout
from verify.protocols import Denoiser

_ENGINES = "verify.faults.engines:"
SHARDED, PADDED, SUMMING = (f"{_ENGINES}{name}" for name in ("Sharded", "Padded", "Summing"))
_IN_ONE_BRANCH = "sg 23211, 33327"


def _rank(wiring: Wiring) -> int:
    """This process's number among all ranks of the run, not in its CFG group."""
    number: int = wiring.group.number  # type: ignore[attr-defined]
    return number


def _is_at(wiring: Wiring, step: int, rank: int) -> bool:
    return wiring.at(step) and _rank(wiring) == rank


def _cut_elsewhere(wiring: Wiring, number: int) -> None:
    group: Any = wiring.group
    wiring.group = changed_group(group, shard=number % group.layout.shards)


@fault(source=_IN_ONE_BRANCH, breaks="group", step=11, rank=3, caught_by="ranks_agree", target=SHARDED, ranks=(4, 6))
def shard_lost(wiring: Wiring) -> None:
    """Rank 3 loses its shard of x_t, and goes on with zeros."""
    wiring.after_step(lambda step, x_t: torch.zeros_like(x_t) if step == 11 and _rank(wiring) == 3 else x_t)


@fault(source=_IN_ONE_BRANCH, breaks="group", step=BEFORE, rank=1, caught_by="matches_reference", target=SHARDED,
       ranks=(4, 6))  # fmt: skip
def shard_of_another_rank(wiring: Wiring) -> None:
    """Rank 1 cuts the shard of the next rank out of the noise."""
    if _rank(wiring) == 1:
        _cut_elsewhere(wiring, 2)


@fault(source=_IN_ONE_BRANCH, breaks="group", step=BEFORE, rank=None, caught_by="matches_reference", target=SHARDED,
       ranks=(4, 6))  # fmt: skip
def shards_swapped(wiring: Wiring) -> None:
    """Every rank numbers the shards from the other end: the branch groups agree, and all hold what others should."""
    group: Any = wiring.group
    _cut_elsewhere(wiring, group.layout.shards - 1 - group.shard + (group.layout.shards % 2))


@fault(source="none public", breaks="group", step=0, rank=3, caught_by="ranks_agree", target=SHARDED, ranks=(4, 6))
def shards_gathered_in_wrong_order_across_branches(wiring: Wiring) -> None:
    """Rank 3 reads the branches that it gathered in the wrong order, the ranks of other shards do not."""
    wiring.on_gather(lambda slots: slots[::-1] if _rank(wiring) == 3 else slots)


@fault(source="sg 18975", breaks="group", step=5, rank=0, caught_by="collectives", target=SHARDED, ranks=(4,))
def shards_gathered_over_the_cfg_group(wiring: Wiring) -> None:
    """In step 5 the network gathers its tokens over the CFG group instead of the ranks that share its branch."""
    group: Any = wiring.group

    def elsewhere(denoiser: Any, x_t: Tensor, step: int, branch: str) -> Tensor:
        denoiser.group = group.cfg if step == 5 else group.branch
        velocity: Tensor = denoiser.velocity(x_t, step, branch)
        denoiser.group = group.branch
        return velocity

    wiring.on_velocity(elsewhere)


@fault(source="none public", breaks="group", step=6, rank=0, caught_by="collectives", target=SHARDED, ranks=(4, 6))
def branches_gathered_over_all_shards_of_one(wiring: Wiring) -> None:
    """In step 6 the velocities are gathered over the ranks that share a branch, instead of across branches."""
    group: Any = wiring.group

    def gather(tensor: Tensor) -> list[Tensor]:
        if not wiring.at(6):
            return list(group.all_gather(tensor))
        return [*gathered(tensor, group.branch).chunk(group.layout.shards)][:2]

    wiring.group = changed_group(group, all_gather=gather)


@fault(source="none public", breaks="group", step=4, rank=1, caught_by="collectives", target=SHARDED, ranks=(4, 6))
def handle_never_waited_for(wiring: Wiring) -> None:
    """Rank 1 does not wait for its gather in step 4; that it has come in time is luck."""
    group: Any = wiring.group

    def gather(tensor: Tensor) -> list[Tensor]:
        if not _is_at(wiring, 4, 1):
            return list(group.all_gather(tensor))
        slots = [torch.empty_like(tensor) for _ in range(group.world_size)]
        dist.all_gather(slots, tensor.contiguous(), group=group.cfg, async_op=True)
        time.sleep(0.05)
        return slots

    wiring.group = changed_group(group, all_gather=gather)


@fault(source="none public", breaks="group", step=7, rank=0, caught_by="collectives", target=SHARDED, ranks=(4, 6))
def shard_broadcast_across_branches(wiring: Wiring) -> None:
    """After step 7 the shards of the first branch go to the other one: what differed would be healed unseen."""
    group: Any = wiring.group

    def heal(step: int, x_t: Tensor) -> Tensor:
        return group.broadcast(x_t.clone()) if step == 7 else x_t

    wiring.after_step(heal)


@fault(source="none public", breaks="group", step=48, rank=1, caught_by="observed", target=SHARDED, ranks=(4, 6))
def shards_put_together_in_wrong_order(wiring: Wiring) -> None:
    """At the end rank 1 puts the shards together in another order than theirs."""
    group: Any = wiring.group

    def together(tensor: Tensor) -> Tensor:
        whole: Tensor = group.gather_shards(tensor)
        return whole.roll(tensor.shape[0], 0) if _rank(wiring) == 1 else whole

    wiring.group = changed_group(group, gather_shards=together)


@fault(source="sg 23736", breaks="group", step=9, rank=1, caught_by="ranks_agree", base="round_robin", target=PADDED,
       ranks=(3, 6))  # fmt: skip
def padding_used(wiring: Wiring) -> None:
    """In step 9 rank 1 takes what the padding ranks evaluated for the first branch's velocity."""
    wiring.on_gather(lambda slots: [slots[2], *slots[1:]] if _is_at(wiring, 9, 1) else slots)


@fault(source="sg 23736", breaks="group", step=9, rank=None, caught_by="matches_reference", base="round_robin",
       target=PADDED, ranks=(3, 6))  # fmt: skip
def padding_used_everywhere(wiring: Wiring) -> None:
    """In step 9 every rank does so: all agree, and only other bytes than a padding rank's show it."""
    wiring.on_gather(lambda slots: [slots[2], *slots[1:]] if wiring.at(9) else slots)


@fault(source="none public", breaks="group", step=6, rank=2, caught_by="sent_as_computed", base="reduce",
       target=SUMMING, ranks=(3,))  # fmt: skip
def padding_added(wiring: Wiring) -> None:
    """In step 6 the padding rank adds its velocity to the sum, instead of nothing."""
    last: list[Tensor] = []

    def keep(denoiser: Denoiser, x_t: Tensor, step: int, branch: str) -> Tensor:
        last[:] = [denoiser.velocity(x_t, step, branch)]
        return last[0]

    wiring.on_velocity(keep)
    _on_sum(wiring, lambda tensor: last[0].clone() if _is_at(wiring, 6, 2) else tensor)


def _on_sum(wiring: Wiring, change: Any) -> None:
    """Lets ``change(tensor)`` replace what enters a sum."""
    group: Any = wiring.group
    wiring.group = changed_group(group, all_reduce=lambda tensor: group.all_reduce(change(tensor)))


@fault(source="none public", breaks="group", step=8, rank=0, caught_by="collectives", base="reduce", target=SUMMING,
       ranks=(2, 3, 4, 6))  # fmt: skip
def sum_missing_in_one_step(wiring: Wiring) -> None:
    """In step 8 every rank goes on with its own product: nothing is summed."""
    group: Any = wiring.group
    alone = lambda tensor: tensor if wiring.at(8) else group.all_reduce(tensor)  # noqa: E731
    wiring.group = changed_group(group, all_reduce=alone)


@fault(source="none public", breaks="group", step=5, rank=0, caught_by="collectives", base="reduce", target=SUMMING,
       ranks=(2, 3, 4, 6))  # fmt: skip
def summed_twice(wiring: Wiring) -> None:
    """In step 5 the sum is summed again, and divided by the number of ranks that did."""
    group: Any = wiring.group

    def twice(tensor: Tensor) -> Tensor:
        total: Tensor = group.all_reduce(tensor)
        return group.all_reduce(total) / group.world_size if wiring.at(5) else total

    wiring.group = changed_group(group, all_reduce=twice)


@fault(source="vo 4882, 4900", breaks="group", step=3, rank=1, caught_by="sent_as_computed", base="reduce",
       target=SUMMING, ranks=(2, 3))  # fmt: skip
def weight_wrong_on_one_rank(wiring: Wiring) -> None:
    """In step 3 rank 1 gives its product to the sum with another weight."""
    _on_sum(wiring, lambda tensor: tensor * 1.25 if _is_at(wiring, 3, 1) else tensor)


@fault(source="none public", breaks="group", step=3, rank=2, caught_by="sent_as_computed", base="reduce",
       target=SUMMING, ranks=(4,))  # fmt: skip
def weight_wrong_on_one_shard(wiring: Wiring) -> None:
    """In step 3 rank 2, the first shard of the second branch, gives its product to the sum with another weight."""
    _on_sum(wiring, lambda tensor: tensor * 1.25 if _is_at(wiring, 3, 2) else tensor)


@fault(source="vo 3956, 1751", breaks="group", step=0, rank=0, caught_by="sent_as_computed", base="reduce",
       target=SUMMING, ranks=(2, 3, 4, 6))  # fmt: skip
def summed_in_bfloat16(wiring: Wiring) -> None:
    """Every product is rounded to bfloat16 before it is summed."""
    _on_sum(wiring, lambda tensor: tensor.bfloat16().float())


@fault(source="none public", breaks="group", step=0, rank=None, caught_by="matches_reference", base="reduce",
       target=SUMMING, ranks=(2, 3, 4, 6))  # fmt: skip
def averaged_instead_of_summed(wiring: Wiring) -> None:
    """The sum is divided by the number of branch groups: all ranks agree, all are wrong."""
    group: Any = wiring.group
    wiring.group = changed_group(group, all_reduce=lambda tensor: group.all_reduce(tensor) / group.world_size)


@fault(source="none public", breaks="group", step=2, rank=0, caught_by="collectives", base="reduce", target=SUMMING,
       ranks=(2, 3, 4, 6))  # fmt: skip
def part_of_a_velocity_summed(wiring: Wiring) -> None:
    """In step 2 half of the tokens are summed, and the other half is each rank's own."""
    group: Any = wiring.group

    def half(tensor: Tensor) -> Tensor:
        if not wiring.at(2):
            return group.all_reduce(tensor)
        rows = tensor.shape[0] // 2
        return torch.cat([group.all_reduce(tensor[:rows].clone()), tensor[rows:]])

    wiring.group = changed_group(group, all_reduce=half)


@fault(source="none public", breaks="group", step=4, rank=0, caught_by="collectives", base="reduce", target=SUMMING,
       ranks=(4, 6))  # fmt: skip
def summed_over_the_shards_of_one_branch(wiring: Wiring) -> None:
    """In step 4 the products are summed over the ranks that share a branch, instead of across branches."""
    group: Any = wiring.group

    def elsewhere(tensor: Tensor) -> Tensor:
        if not wiring.at(4):
            return group.all_reduce(tensor)
        dist.all_reduce(tensor, group=group.branch)
        return tensor

    wiring.group = changed_group(group, all_reduce=elsewhere)


@fault(source="vo 1695", breaks="group", step=0, rank=0, caught_by="collectives", base="reduce", target=SUMMING,
       ranks=(4, 6))  # fmt: skip
def shards_healed_within_a_branch(wiring: Wiring) -> None:
    """Rank 1 is one ULP off after each step, and a broadcast among the ranks that share its branch heals it unseen."""
    group: Any = wiring.group
    layout: Layout = group.layout

    def change(step: int, x_t: Tensor) -> Tensor:
        healed = x_t.clone()
        if _rank(wiring) == 1:
            bits_of(healed)[0, 0] += 1
        dist.broadcast(healed, layout.branch_group(_rank(wiring))[0], group=group.branch)
        return healed

    wiring.after_step(change)


@fault(source="pt 158903", breaks="noise", step=BEFORE, rank=1, caught_by="ranks_agree", base="reduce", target=SUMMING,
       ranks=(2, 3, 4, 6))  # fmt: skip
def noise_not_shared_with_one_rank(wiring: Wiring) -> None:
    """Rank 1 takes part in the broadcast of the noise, and goes on with its own."""
    group: Any = wiring.group

    def share(tensor: Tensor) -> None:
        group.share(tensor.clone() if _rank(wiring) == 1 else tensor)

    wiring.group = changed_group(group, share=share)
