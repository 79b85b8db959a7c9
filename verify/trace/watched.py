"""What a loop is given in place of its denoiser and group: the same, and every call is told to the recorder."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from verify.protocols import Denoiser, Group
from verify.schedule import ALL_GATHER, BROADCAST


class Listener(Protocol):
    """Who is told: :class:`verify.trace.recorder.Recorder`."""

    def evaluated(self, x_t: Tensor, branch: str) -> None:
        """``branch`` is about to be evaluated at ``x_t``."""
        ...

    def collective(self, name: str, tensor: Tensor, src: int | None = None) -> None:
        """Collective ``name`` is about to be called."""
        ...

    def between(self) -> None:
        """That is over."""
        ...


class WatchedDenoiser:
    """A denoiser that reports each evaluation; everything else is the denoiser's own."""

    def __init__(self, recorder: Listener, denoiser: Denoiser) -> None:
        self._recorder, self._denoiser = recorder, denoiser

    def __getattr__(self, name: str) -> Any:
        return getattr(self._denoiser, name)

    def velocity(self, x_t: Tensor, step: int, branch: str) -> Tensor:
        self._recorder.evaluated(x_t, branch)
        v_t = self._denoiser.velocity(x_t, step, branch)
        self._recorder.between()
        return v_t


class WrappedGroup:
    """The part of a group that stays as it is when its collectives are wrapped: rank and world size."""

    def __init__(self, group: Group) -> None:
        self._group = group

    @property
    def rank(self) -> int:
        return self._group.rank

    @property
    def world_size(self) -> int:
        return self._group.world_size


class WatchedGroup(WrappedGroup):
    """A group that reports each collective."""

    def __init__(self, recorder: Listener, group: Group) -> None:
        super().__init__(group)
        self._recorder = recorder

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        self._recorder.collective(ALL_GATHER, tensor)
        gathered = self._group.all_gather(tensor)
        self._recorder.between()
        return gathered

    def broadcast(self, tensor: Tensor, src: int = 0) -> Tensor:
        self._recorder.collective(BROADCAST, tensor, src)
        self._group.broadcast(tensor, src)
        self._recorder.between()
        return tensor
