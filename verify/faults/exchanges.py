"""Faults in what ranks exchange beside the group that a loop is handed, and in what they put into a gather."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

from verify.bits import bits_of
from verify.combine import combine_cfg
from verify.faults.registry import Wiring, changed_group, fault
from verify.protocols import Denoiser

_HIDDEN = "vo 1695"


def _scale_lost(wiring: Wiring) -> None:
    """Rank 1 combines with another scale, in its own process."""

    def combine(gen: Tensor, text: Tensor, img: Tensor | None, scale: float, *rest: Any) -> Tensor:
        return combine_cfg(gen, text, img, scale - 1, *rest)

    if wiring.rank == 1:
        wiring.patches.enter_context(mock.patch("verify.loops.guidance.combine_cfg", combine))


def _after_step(wiring: Wiring, exchange: Callable[[Tensor], object], first: int = 0) -> None:
    """Exchanges ``x_t`` in place after each step from ``first`` on."""

    def change(step: int, x_t: Tensor) -> Tensor:
        if step >= first:
            exchange(x_t)
        return x_t

    wiring.after_step(change)


@fault(source=_HIDDEN, breaks="group", step=0, rank=0, caught_by="collectives")
def broadcast_beside_the_group(wiring: Wiring) -> None:
    """The broadcast of x_t after every step is still there, done with torch.distributed directly."""
    _after_step(wiring, lambda x_t: dist.broadcast(x_t, 0))


@fault(source=_HIDDEN, breaks="group", step=0, rank=0, caught_by="collectives")
def broadcast_heals_a_wrong_combine(wiring: Wiring) -> None:
    """Rank 1 combines with another scale, and a broadcast over a group of the engine's own heals its x_t unseen."""
    own = dist.new_group(list(range(dist.get_world_size())))
    _scale_lost(wiring)
    _after_step(wiring, lambda x_t: dist.broadcast(x_t, 0, group=own))


@fault(source=_HIDDEN, breaks="group", step=4, rank=0, caught_by="collectives")
def all_reduce_heals_an_ulp(wiring: Wiring) -> None:
    """Rank 1 is one ULP off after each step, and an all_reduce of the least heals it."""

    def change(step: int, x_t: Tensor) -> Tensor:
        if step < 4:
            return x_t
        healed = x_t.clone()
        if wiring.rank == 1:
            bits_of(healed)[0, 0] += 1 if healed[0, 0] > 0 else -1
        dist.all_reduce(healed, op=dist.ReduceOp.MIN)
        return healed

    wiring.after_step(change)


@fault(source="none public", breaks="group", step=0, rank=0, caught_by="collectives")
def barrier_after_each_step(wiring: Wiring) -> None:
    """A barrier after every step, left over from a search for a race."""
    _after_step(wiring, lambda x_t: dist.barrier())


@fault(source="none public", breaks="group", step=7, rank=0, caught_by="collectives")
def objects_broadcast_each_step(wiring: Wiring) -> None:
    """The state of the scheduler goes out as a pickle after each step from 7 on."""
    _after_step(wiring, lambda x_t: dist.broadcast_object_list([{"x_t": x_t.shape}], src=0), first=7)


@fault(source="none public", breaks="group", step=0, rank=0, caught_by="collectives")
def branches_take_turns(wiring: Wiring) -> None:
    """Each rank waits for a token from the rank before it: the branches are evaluated one after the other."""
    guided, rank, last = wiring.request.schedule.guided, wiring.rank, wiring.group.world_size - 1

    def in_turn(denoiser: Denoiser, x_t: Tensor, step: int, branch: str) -> Tensor:
        token = torch.zeros(1, device=x_t.device)
        if guided[step] and rank > 0:
            dist.recv(token, rank - 1)
        velocity = denoiser.velocity(x_t, step, branch)
        if guided[step] and rank < last:
            dist.send(token, rank + 1)
        return velocity

    wiring.on_velocity(in_turn)


@fault(source="none public", breaks="group", step=3, rank=0, caught_by="collectives")
def velocities_pass_beside_the_group(wiring: Wiring) -> None:
    """From step 3 on velocities are gathered with torch.distributed directly, and a dummy through the group."""
    before = wiring.group

    def gather(tensor: Tensor) -> list[Tensor]:
        if wiring.done < 3:
            return before.all_gather(tensor)
        before.all_gather(tensor.clone())
        slots = [torch.empty_like(tensor) for _ in range(before.world_size)]
        dist.all_gather(slots, tensor.contiguous())
        return slots

    wiring.group = changed_group(before, all_gather=gather)


@fault(source="none public", breaks="group", step=0, rank=0, caught_by="collectives")
def group_gathers_twice(wiring: Wiring) -> None:
    """The engine's group sends a second tensor along with each gather."""
    inner: Any = vars(wiring.group)["_group"]
    gather = inner.all_gather

    def twice(tensor: Tensor) -> list[Tensor]:
        gathered: list[Tensor] = gather(tensor)
        gather(torch.zeros_like(tensor))
        return gathered

    wiring.patches.enter_context(mock.patch.object(inner, "all_gather", twice))


@fault(source="none public", breaks="noise", step=0, rank=0, caught_by="collectives")
def noise_shared_from_rank_1(wiring: Wiring) -> None:
    """The initial noise is shared from rank 1, alike on all ranks."""
    wiring.on_broadcast(lambda group, tensor: group.broadcast(tensor, 1))


def _sent_as(wiring: Wiring, there: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]) -> None:
    before = wiring.group
    gather: Callable[[Tensor], list[Tensor]] = lambda v: [back(slot) for slot in before.all_gather(there(v))]  # noqa: E731
    wiring.group = changed_group(before, all_gather=gather)


@fault(source="vo 3956, 1751", breaks="group", step=0, rank=0, caught_by="sent_as_computed")
def velocity_sent_in_float16(wiring: Wiring) -> None:
    """Every rank sends its velocity in float16, which holds other numbers than bfloat16."""
    _sent_as(wiring, lambda v: v.half(), lambda v: v.bfloat16())


@fault(source="none public", breaks="group", step=0, rank=0, caught_by="sent_as_computed")
def velocity_sent_in_float8(wiring: Wiring) -> None:
    """Every rank sends its velocity in eight bits, as bytes."""
    eight = torch.float8_e4m3fn
    _sent_as(wiring, lambda v: v.to(eight).view(torch.uint8), lambda v: v.view(eight).bfloat16())


@fault(source="none public", breaks="group", step=0, rank=0, caught_by="sent_as_computed")
def velocity_sent_in_another_order(wiring: Wiring) -> None:
    """Tokens are reversed on their way into the gather and on their way out of it."""
    _sent_as(wiring, lambda v: v.flip(0), lambda v: v.flip(0))


@fault(source="vo 2371, 5287", breaks="group", step=2, rank=1, caught_by="sent_as_computed")
def velocity_scaled_before_it_is_sent(wiring: Wiring) -> None:
    """Rank 1 scales its velocity in step 2 after the network and before the gather: all ranks agree on it."""
    before = wiring.group
    gather: Callable[[Tensor], list[Tensor]] = lambda v: before.all_gather(v * 1.25 if wiring.at(2, 1) else v)  # noqa: E731
    wiring.group = changed_group(before, all_gather=gather)


@fault(source="vo 2371, 5287", breaks="group", step=5, rank=1, caught_by="sent_as_computed")
def velocity_of_the_step_before_is_sent(wiring: Wiring) -> None:
    """Rank 1 evaluates in step 5 and sends what it had sent in step 4."""
    before = wiring.group
    kept: list[Tensor] = []

    def gather(velocity: Tensor) -> list[Tensor]:
        sent = kept[0] if wiring.at(5, 1) else velocity
        kept[:] = [velocity.clone()]
        return before.all_gather(sent)

    wiring.group = changed_group(before, all_gather=gather)
