"""What a loop is given and what it must do: the whole interface between a loop and the suite.

A loop of your own needs nothing else from this package but, if it likes, :func:`verify.combine_cfg`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from jaxtyping import Float
from torch import Tensor

from verify.request import DenoiseRequest


class Denoiser(Protocol):
    """Gives the velocity of one branch."""

    def velocity(
        self, x_t: Float[Tensor, "tokens channels"], step: int, branch: str
    ) -> Float[Tensor, "tokens channels"]:
        """The velocity at ``x_t`` and ``step`` (from 0), in the shape of ``x_t``; ``branch`` is one of the request's.

        A loop may give None for ``step``, meaning the one that it is in, and say by further keywords what its engine
        asks of the network: ``t``, the timestep as the engine holds it, ``expert``, or others. The target's denoiser
        takes those keywords, with defaults that suit the step. What is asked is recorded and judged.
        """
        ...


class Group(Protocol):
    """The CFG-parallel process group."""

    @property
    def rank(self) -> int:
        """This process's place, from 0."""
        ...

    @property
    def world_size(self) -> int:
        """How many processes there are."""
        ...

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """Every rank's ``tensor``, in rank order."""
        ...

    def broadcast(self, tensor: Tensor, src: int = 0) -> Tensor:
        """Overwrites ``tensor`` on every rank with that of rank ``src``, in place, and returns it."""
        ...


class SummingGroup(Group, Protocol):
    """A group that can sum too, as the suite's own can."""

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Overwrites ``tensor`` with the sum of every rank's, in place, and returns it."""
        ...


# What a loop shows beside x_t, by name; None for nothing.
State = Mapping[str, Any] | None


class Observe(Protocol):
    """To be called once after each step with the new ``x_t``.

    A loop may show further state of its sampler by name, as in ``observe(step, x_t, {"history": history, "generator":
    generator})``; see ``Prepared.state``.
    """

    def __call__(self, step: int, x_t: Float[Tensor, "tokens channels"], state: State = None) -> None: ...


class Loop(Protocol):
    """One version of the denoising loop, from ``x_0`` to the final latent."""

    def __call__(
        self,
        denoiser: Denoiser,
        request: DenoiseRequest,
        x_0: Float[Tensor, "tokens channels"],
        group: Group,
        observe: Observe,
    ) -> Float[Tensor, "tokens channels"]: ...
