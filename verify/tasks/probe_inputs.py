"""Tries whether the network's inputs matter: its branch, its ``x_t``, the caches that the target shows."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import combinations, pairwise
from typing import Any

import torch
from torch import Tensor

from verify.bits import same_bits
from verify.protocols import Denoiser, State
from verify.ranks.group import Alone
from verify.ranks.rank import Rank
from verify.tasks.stage import Plan, Stage
from verify.trace.device import synchronise
from verify.trace.latents import each, packed
from verify.trace.listener import HeardDenoiser, Listener
from verify.trace.sensitivity import Sensitivity

# Beyond so many seconds in all, the caches of a branch are changed together rather than one by one.
_ONE_BY_ONE = 1.0


def probe_inputs(rank: Rank, plan: Plan) -> Sensitivity | None:
    """Runs on rank 0; the others help the target to prepare and return None.

    ``plan`` names the reference. Each trial has a stage of its own, so that none finds what another has changed.
    """
    stages = [Stage.of(rank, plan) for _ in range(4)]
    if not stages[0].takes_part:
        return None
    guided = stages[0].request.schedule.guided
    step = guided.index(True) if True in guided else 0
    rank.status.activity(f"trying what matters to the network in step {step}")
    try:
        with stages[0].arithmetic():
            found = _tried(stages[0], step)
            if guided[step] and len(stages[0].request.branches) > 1:
                first = stages[0].request.branches[0]
                plain, same = _through(stages[1], step, Listener()), _through(stages[2], step, _FirstOnly(first))
                found = replace(found, guided=not same_bits(plain, same))
            return replace(found, sizes=_sizes(stages[3]))
    except Exception as error:
        return Sensitivity(step=step, failed=f"{type(error).__name__}: {error}")


def _tried(stage: Stage, step: int) -> Sensitivity:
    denoiser, x_t = stage.prepared.denoiser, each(stage.prepared.x_0, torch.clone)
    given = stage.prepared.input or (lambda x_t, step: x_t)
    guided = stage.request.schedule.guided[step]
    branches = tuple(dict.fromkeys(stage.request.branches if guided else stage.request.branches[:1]))

    def velocity(branch: str, at: Any = x_t) -> Tensor:
        found: Tensor = packed(denoiser.velocity(given(each(at, torch.clone), step), step, branch))
        return found.detach().clone()

    began = time.monotonic()
    plain = {branch: velocity(branch) for branch in branches}
    synchronise(stage.rank.device)
    seconds = (time.monotonic() - began) / len(branches)
    other = each(x_t, lambda part: part * 0.5 + 0.25 if part.is_floating_point() else part)
    deaf = tuple(branch for branch in branches if same_bits(velocity(branch, other), plain[branch]))
    shown = [(branch, dict(stage.prepared.caches.get(branch, {}))) for branch in branches]
    together = seconds * sum(len(tensors) for _, tensors in shown) > _ONE_BY_ONE
    unread: list[str] = []
    for branch, tensors in shown:
        for names in _shares(tensors, together):
            with_others = {name: tensors[name] for name in names}
            if _unread(with_others, lambda branch=branch: velocity(branch), plain[branch]):
                unread.append(f"{branch}: {', '.join(names[:3])}" + (" and more" if len(names) > 3 else ""))
    # Last, since a denoiser that remembers would be found out by then.
    unrepeated = tuple(branch for branch in branches if not same_bits(velocity(branch), plain[branch]))
    return Sensitivity(
        step=step,
        equal_branches=tuple((a, b) for a, b in combinations(branches, 2) if same_bits(plain[a], plain[b])),
        unrepeated=unrepeated,
        deaf=deaf,
        unread=tuple(unread),
        alike=stage.prepared.alike,
    )


def _shares(tensors: dict[str, Tensor], together: bool) -> Iterator[list[str]]:
    """The caches to change at a time; only numbers that stay valid when they change."""
    names = [name for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel()]
    if together and names:
        yield names
    elif not together:
        yield from ([name] for name in names)


def _unread(tensors: dict[str, Tensor], velocity: object, plain: Tensor) -> bool:
    assert callable(velocity)
    kept = {name: tensor.clone() for name, tensor in tensors.items()}
    # What was made in inference mode may only be written to in it.
    with torch.inference_mode(any(tensor.is_inference() for tensor in tensors.values())):
        for tensor in tensors.values():
            tensor.mul_(-1.0).add_(0.5)
    changed: Tensor = velocity()
    with torch.inference_mode(any(tensor.is_inference() for tensor in tensors.values())):
        for name, tensor in tensors.items():
            tensor.copy_(kept[name])
    return same_bits(changed, plain)


class _FirstOnly(Listener):
    """Answers for every branch as for the first."""

    def __init__(self, branch: str) -> None:
        self._branch = branch

    def evaluate(self, denoiser: Denoiser, x_t: Tensor, step: int, branch: str) -> Tensor:
        return denoiser.velocity(x_t, step, self._branch)


class _Reached(BaseException):
    """Ends a loop at a step; an engine's own ``except Exception`` does not hold it up."""


def _through(stage: Stage, last: int, listener: Listener) -> Tensor:
    """The reference's ``x_t`` after that step. The request stays whole: many loops do not read their steps from it."""
    found: list[Tensor] = []

    def observe(step: int, x_t: Tensor, state: State = None) -> None:
        listener.observe(step, x_t)
        found.append(packed(x_t).detach().clone())
        if step == last:
            raise _Reached

    denoiser = HeardDenoiser(stage.prepared.denoiser, listener)
    with suppress(_Reached):
        stage.loop(denoiser, stage.request, each(stage.prepared.x_0, torch.clone), Alone(), observe)
    return found[-1]


class _Ones(Listener):
    """Answers for every branch with a velocity of 1 everywhere, and keeps what it is shown."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def evaluate(self, denoiser: Denoiser, x_t: Tensor, step: int, branch: str) -> Tensor:
        ones: Tensor = each(x_t, torch.ones_like)
        return ones

    def observe(self, step: int, x_t: Tensor, state: State = None) -> None:
        super().observe(step, x_t)
        self.seen.append(packed(x_t).detach().clone())


def _sizes(stage: Stage) -> tuple[float, ...]:
    """The size of each step of the reference loop: how far a velocity of 1 moves a latent of zeros.

    Equal branches combine to themselves, whatever the scales. A loop that cannot be run so, or moves elements
    differently, does not show its sizes.
    """
    ones = _Ones()
    # In 16 bits an x_t of 1 is coarser than a small step is wide.
    zeros = each(
        stage.prepared.x_0,
        lambda part: torch.zeros_like(part, dtype=torch.float32 if part.dtype.itemsize == 2 else part.dtype),
    )
    try:
        stage.loop(HeardDenoiser(stage.prepared.denoiser, ones), stage.request, zeros, Alone(), ones.observe)
    except Exception:
        return ()
    moved = [after.double() - before.double() for before, after in pairwise([packed(zeros), *ones.seen])]
    if not moved or any(float(by.max() - by.min()) > 1e-6 for by in moved):
        return ()
    return tuple(-float(by.flatten()[0]) for by in moved)
