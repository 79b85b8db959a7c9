"""Whether what enters each gather, or sum over ranks, is what the network returned.

Compared are bytes, on the device and without waiting for it. What a loop may do to a velocity on the way is what loses
nothing: view it in another shape or as other elements of the same bytes, lift it to a wider float, send several
velocities at once or one in pieces. What enters a sum may also be a velocity times one number, its weight. A target
whose loops send something else, or whose weights are to be judged too, says what, see ``Prepared.sends``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from verify.bits import describe, first_difference
from verify.schedule import ALL_GATHER, ALL_REDUCE
from verify.trace.latents import Latents, parts_of
from verify.verdict import Difference

Cast = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Sent:
    """What one rank put into its gathers and sums, beside what its network had returned.

    Attributes:
        gathers: how many were compared.
        elements: how many elements.
        unlike: how many gathers were given something else.
        step: the step of the first of those; None where there is none.
        branch: whose velocity it should have been.
        given: what the gather was given, as in ``float16 (64, 16)``.
        due: what the network had returned, likewise.
        difference: the first element that differs, as returned and as given; None where dtypes or sizes differ so that
            no element stands for another.
        sums: how many of the gathers were sums over ranks.
        weight: the number that the velocity was multiplied by before the first sum; None where the target says what it
            sends, or nothing was summed.
        velocity: dtype and shape of what the network returned last.
    """

    gathers: int = 0
    elements: int = 0
    unlike: int = 0
    step: int | None = None
    branch: str = ""
    given: str = ""
    due: str = ""
    difference: Difference | None = None
    sums: int = 0
    weight: float | None = None
    velocity: tuple[str, tuple[int, ...]] | None = None


@dataclass
class _First:
    """The first unlike gather of one kind: its number, and both tensors, all on the device."""

    number: Tensor
    given: Tensor
    due: Tensor


class PayloadWatch:
    """Notes what the network returns and what enters each gather."""

    def __init__(self, cast: Cast | None = None) -> None:
        """``cast``: what the target says its loops make of a velocity before they send it."""
        self._cast = cast
        # This rank's velocities of one step, by branch, in order, from which one gather after the other is served.
        self._own: dict[str, Tensor] = {}
        self._step = 0
        self._is_sent = False
        self._offset = 0
        self._noted: list[tuple[int, str, str, str]] = []
        self._elements = 0
        self._unlike: Tensor | int = 0
        self._first: dict[tuple[torch.dtype, torch.Size, torch.device], _First] = {}
        self._first_of_no_kind: int | None = None
        self._sums = 0
        self._weight: Tensor | None = None
        self._velocity: tuple[str, tuple[int, ...]] | None = None

    def computed(self, step: int, branch: str, velocity: Latents) -> None:
        """The network has returned ``velocity``; a copy is kept, since the loop may write to it."""
        for part, each in parts_of(velocity).items():
            self._computed(step, f"{branch} ({part})" if part else branch, each)

    def _computed(self, step: int, branch: str, velocity: Tensor) -> None:
        if self._is_sent or step != self._step:
            self._own.clear()
            self._step, self._is_sent, self._offset = step, False, 0
        self._velocity = str(velocity.dtype).removeprefix("torch."), tuple(velocity.shape)
        self._own.pop(branch, None)
        kept = velocity if self._cast is None else self._cast(velocity)
        self._own[branch] = _plain(kept).clone(memory_format=torch.contiguous_format)

    def gathered(self, step: int, tensor: Tensor, name: str = ALL_GATHER) -> None:
        """``tensor`` is about to enter a gather, or a sum; it is compared where something has been computed."""
        if not self._own:
            return
        number, self._is_sent = len(self._noted), True
        given = _plain(tensor)
        branch, own = next(reversed(self._own.items()))
        self._noted.append((step, branch, describe(tensor), describe(own)))
        self._elements += given.numel()
        if name == ALL_REDUCE:
            self._sums += 1
            if self._cast is None:
                self._weighed(number, own, given)
                return
        pairs = [pair for due in self._candidates(given) for pair in _in_one_form(due, given)]
        if not pairs:
            self._unlike = self._unlike + 1
            if self._first_of_no_kind is None:
                self._first_of_no_kind = number
            return
        unlike = torch.stack([(_bytes(due) != _bytes(sent)).any() | loses for due, sent, loses in pairs]).all()
        self._unlike = self._unlike + unlike
        self._keep_first(number, unlike, *pairs[0][:2])

    def _weighed(self, number: int, own: Tensor, given: Tensor) -> None:
        """Whether a sum is given the velocity times one number.

        The number is read off where the velocity is greatest. Product and reading are each off by half an ``eps`` of
        the coarser format at most, so that another element is off by one.
        """
        if own.numel() != given.numel() or not (own.is_floating_point() and given.is_floating_point()):
            self._unlike = self._unlike + 1
            self._first_of_no_kind = number if self._first_of_no_kind is None else self._first_of_no_kind
            return
        v, sent = own.to(given.device).double().flatten(), given.double().flatten()
        top = v.abs().argmax()
        weight = torch.where(v[top] == 0, torch.zeros_like(v[top]), sent[top] / v[top])
        formats = torch.finfo(own.dtype), torch.finfo(given.dtype)
        eps, least = (max(getattr(each, what) for each in formats) for what in ("eps", "smallest_normal"))
        bound = eps * (1 + eps) ** 2 * (weight * v).abs() + least * eps
        unlike = ~((sent - weight * v).abs() <= bound).all()
        if self._weight is None:
            self._weight = weight
        self._unlike = self._unlike + unlike
        # What it should have been is known up to its weight alone: in the given format, so that both can be shown.
        self._keep_first(number, unlike, (weight * v).to(given.dtype).view(given.shape), given)

    def record(self) -> Sent:
        """What has been seen; waits for the device."""
        if not self._noted:
            return Sent(velocity=self._velocity)
        firsts = {int(first.number): first for first in self._first.values()}
        firsts.pop(-1, None)
        number = min([*firsts, *([] if self._first_of_no_kind is None else [self._first_of_no_kind])], default=None)
        unlike, gathers = int(self._unlike), len(self._noted)
        found = Sent(
            gathers,
            self._elements,
            unlike,
            sums=self._sums,
            weight=None if self._weight is None else float(self._weight),
            velocity=self._velocity,
        )
        if number is None:
            return found
        first = firsts.get(number)
        difference = None if first is None else first_difference(first.due, first.given)
        step, branch, given, due = self._noted[number]
        return replace(found, step=step, branch=branch, given=given, due=due, difference=difference)

    def _candidates(self, given: Tensor) -> Iterator[Tensor]:
        """What this rank may mean to send, the likeliest first: a velocity, several, or the next piece of them."""
        there = given.device
        own = [v if v.device == there else v.to(there, non_blocking=True) for v in self._own.values()]
        yield from reversed(own)
        if len({velocity.dtype for velocity in own}) != 1:
            return
        joined = torch.cat([velocity.flatten() for velocity in own])
        if len(own) > 1:
            yield joined
        end = self._offset + given.numel()
        if given.dtype == joined.dtype and given.numel() < joined.numel() and end <= joined.numel():
            yield joined[self._offset : end]
            self._offset = end % joined.numel()

    def _keep_first(self, number: int, unlike: Tensor, due: Tensor, given: Tensor) -> None:
        """Keeps both tensors if they are the first of their kind that differ; the device decides."""
        kind = due.dtype, due.shape, due.device
        first = self._first.get(kind)
        if first is None:
            never = torch.full((), -1, dtype=torch.int64, device=due.device)
            first = self._first[kind] = _First(never, torch.zeros_like(given), torch.zeros_like(due))
        now = unlike & (first.number < 0)
        first.number = torch.where(now, number, first.number)
        first.given = torch.where(now, given, first.given)
        first.due = torch.where(now, due, first.due)


def _in_one_form(due: Tensor, given: Tensor) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """Both as tensors of one shape and dtype, and whether that form can lose something even where their bytes agree."""
    if due.numel() == given.numel():
        if due.dtype == given.dtype:
            yield due, given.reshape(due.shape), False
        elif due.is_floating_point() and given.is_floating_point():
            # float64 holds every number of every narrower format.
            yield due.double(), given.double().reshape(due.shape), not _lifts(due.dtype, given.dtype)
    if due.dtype != given.dtype and due.nbytes == given.nbytes:
        yield due, _bytes(given).view(due.dtype).view(due.shape), False


def _lifts(narrow: torch.dtype, wide: torch.dtype) -> bool:
    """Whether ``wide`` holds every number of ``narrow``."""
    a, b = torch.finfo(narrow), torch.finfo(wide)
    return a.max <= b.max and a.eps >= b.eps and a.smallest_normal >= b.smallest_normal


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().resolve_conj().resolve_neg()


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)
