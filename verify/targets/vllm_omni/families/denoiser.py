"""A family's network on this rank with one request's prompts, as loops see a denoiser."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from verify.targets.vllm_omni.families.family import Family

Call = Mapping[str, Any]


class FamilyDenoiser:
    """Velocities by upstream's ``predict_noise``.

    Upstream's loop hands over its own call (:meth:`handed_over`); asked by anything else, the call is the one that its
    loop made in a rehearsal with a network that costs nothing.

    Attributes:
        family: the adapter.
        network: what stands for the transformer.
        calls: upstream's calls of ``predict_noise`` in the rehearsal, by step and branch.
        times: the times that its loop handed to its scheduler.
    """

    def __init__(self, family: Family) -> None:
        self.family, self.network = family, family.network
        self.calls: dict[tuple[int, str], Call] = {}
        self.times: tuple[float, ...] = ()
        self._pipeline = family.pipeline()
        self._call: tuple[str, Call, Callable[..., Tensor]] | None = None

    def velocity(self, x_t: Tensor, step: int, branch: str, **asked: Any) -> Tensor:
        """What ``predict_noise`` gives for ``branch``, with the sign that a step subtracts."""
        if self._call is not None and self._call[0] == branch:
            _, call, predict = self._call
        else:
            call, predict = self.calls[step, branch], self._pipeline.predict_noise
        predicted = predict(**self.family.with_latent(call, x_t))
        velocity: Tensor = predicted if self.family.falls else -predicted
        return velocity

    @contextmanager
    def handed_over(self, branch: str, call: Call, predict: Callable[..., Tensor]) -> Iterator[None]:
        """Upstream's loop is about to ask for a velocity by this call."""
        self._call = branch, call, predict
        try:
            yield
        finally:
            self._call = None
