"""What a loop is given in place of its denoiser and group: the same objects, with one listener in between.

Recording, probing and timing are listeners. Each is told of every evaluation, collective and observation, and makes the
call itself, so that it can look before and after.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor

from verify.protocols import Denoiser, Group, State, SummingGroup


class Listener:
    """Makes each call and does nothing else; whoever listens overrides what concerns it."""

    _observed = 0

    def evaluate(self, denoiser: Denoiser, x_t: Tensor, step: int, branch: str) -> Tensor:
        """The loop asks for the velocity of ``branch`` at ``x_t``."""
        return denoiser.velocity(x_t, step, branch)

    def all_gather(self, group: Group, tensor: Tensor) -> list[Tensor]:
        """The loop gathers ``tensor``."""
        return group.all_gather(tensor)

    def all_reduce(self, group: SummingGroup, tensor: Tensor) -> Tensor:
        """The loop sums ``tensor`` over the ranks of the group."""
        return group.all_reduce(tensor)

    def broadcast(self, group: Group, tensor: Tensor, src: int) -> Tensor:
        """The loop broadcasts ``tensor`` from rank ``src`` of the group, in place."""
        group.broadcast(tensor, src)
        return tensor

    def observe(self, step: int, x_t: Tensor, state: State = None) -> None:
        """The loop shows the ``x_t``, and other state if it likes, that it holds after ``step``."""
        self._observed = step + 1

    @property
    def step_now(self) -> int:
        """The step that the loop is in."""
        return self._observed

    def asked(self, branch: str, asked: Mapping[str, Any]) -> None:
        """The loop is about to ask for ``branch`` and says with what: a timestep, an expert."""


class HeardDenoiser:
    """A denoiser whose evaluations a listener makes; every other attribute is the denoiser's own, to read and to set.

    ``first`` is added to the step: for a loop whose step 0 is another's step ``first``.
    """

    _OWN = ("_denoiser", "_listener", "_first")

    def __init__(self, denoiser: Denoiser, listener: Listener, first: int = 0) -> None:
        for name, value in zip(self._OWN, (denoiser, listener, first), strict=True):
            object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        # While a copy of this object is made, it has no denoiser yet.
        if name in self._OWN or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(name)
        return getattr(self._denoiser, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._OWN:
            object.__setattr__(self, name, value)
        else:
            setattr(self._denoiser, name, value)

    def velocity(self, x_t: Tensor, step: int | None, branch: str, **asked: Any) -> Tensor:
        """``step``: None for the one that the loop is in. ``asked``: what else the denoiser is told, see Denoiser."""
        at = self._listener.step_now if step is None else self._first + step
        denoiser = self._denoiser
        if asked:
            self._listener.asked(branch, asked)
            denoiser = Asking(denoiser, asked)
        return self._listener.evaluate(denoiser, x_t, at, branch)


class Asking:
    """A denoiser that is told more than step and branch in each evaluation."""

    def __init__(self, denoiser: Any, asked: Mapping[str, Any]) -> None:
        """``denoiser`` takes what is asked as keywords."""
        self._denoiser, self._asked = denoiser, asked

    def __getattr__(self, name: str) -> Any:
        if name in ("_denoiser", "_asked") or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(name)
        return getattr(self._denoiser, name)

    def velocity(self, x_t: Tensor, step: int, branch: str) -> Tensor:
        velocity: Tensor = self._denoiser.velocity(x_t, step, branch, **self._asked)
        return velocity


class HeardGroup:
    """A group whose collectives a listener makes; rank and world size are the group's own."""

    def __init__(self, group: Group, listener: Listener) -> None:
        self._group, self._listener = group, listener

    def __getattr__(self, name: str) -> Any:
        if name in ("_group", "_listener") or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(name)
        return getattr(self._group, name)

    @property
    def rank(self) -> int:
        return self._group.rank

    @property
    def world_size(self) -> int:
        return self._group.world_size

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        return self._listener.all_gather(self._group, tensor)

    def all_reduce(self, tensor: Tensor) -> Tensor:
        return self._listener.all_reduce(cast(SummingGroup, self._group), tensor)

    def broadcast(self, tensor: Tensor, src: int = 0) -> Tensor:
        return self._listener.broadcast(self._group, tensor, src)
