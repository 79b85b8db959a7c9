"""Whether each evaluation of the network is at the ``x_t`` that the loop showed before it. Waits for no device."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor

from verify.bits import bits_of
from verify.trace.contract import plain_copy
from verify.trace.sampling import SamplerWatch


class PointsWatch:
    """Compares where the network is evaluated with what was observed.

    Attributes:
        start: the ``x_t`` that the first evaluation of step 0 was given; None before it.
        last: the ``x_t`` last observed; None before the first step ends.
    """

    def __init__(
        self, device: torch.device, sampler: SamplerWatch, part: Callable[[Tensor], Tensor] = lambda x_t: x_t
    ) -> None:
        """``part``: what the loop shows of the ``x_t`` that it evaluates at."""
        self._device, self._sampler, self._part = device, sampler, part
        self.start: Tensor | None = None
        self.last: Tensor | None = None
        # By step: elements that are not those observed, and evaluations whose x_t is yet to be observed.
        self._foreign: defaultdict[int, Tensor] = defaultdict(self._nothing)
        self._ahead: defaultdict[int, list[Tensor]] = defaultdict(list)

    def _nothing(self) -> Tensor:
        return torch.zeros((), dtype=torch.int64, device=self._device)

    def begin_again(self) -> None:
        """What step 0 has evaluated so far was a warm-up."""
        self._foreign.pop(0, None)
        self.start = None

    def evaluated(self, step: int, x_t: Tensor, earlier: int, ahead: bool, compares: bool) -> None:
        """``step`` evaluates a branch at ``x_t``, after ``earlier`` times of that branch.

        ``ahead``: the ``x_t`` before the step has not been observed yet. ``compares``: there is something to compare.
        """
        if step == 0 and self.start is None:
            self.start = plain_copy(x_t)
        if self._sampler.is_further(step, earlier):
            self._foreign[step] += self._sampler.point(step, earlier, x_t)
        elif ahead:
            self._ahead[step].append(plain_copy(x_t))
        elif compares:
            self._compare(step, x_t)

    def observed(self, step: int, x_t: Tensor) -> None:
        """``x_t`` is a copy of what the loop shows after ``step``."""
        self.last = x_t
        for ahead in self._ahead.pop(step + 1, ()):
            self._compare(step + 1, ahead)

    def foreign(self, steps: int) -> tuple[int, ...]:
        """For each step, how many elements were not those observed. Waits for the device."""
        return tuple(torch.stack([self._foreign[step] for step in range(steps)]).tolist()) if steps else ()

    def _compare(self, step: int, x_t: Tensor) -> None:
        """Counts the elements that are not those of the ``x_t`` before ``step``, in the dtype that the loop chose."""
        before = self.start if step == 0 else self.last
        if before is None:  # Recording has ended with a breach of the contract.
            return
        if step:
            before, x_t = self._sampler.given(before, step), self._part(x_t)
        own = before if x_t.dtype == before.dtype else before.to(x_t.dtype)
        alike = x_t.shape == before.shape
        self._foreign[step] += (bits_of(x_t) != bits_of(own)).sum() if alike else before.numel()


class AlikeWatch:
    """Where one rank evaluates every branch: whether two of them have one velocity."""

    def __init__(self) -> None:
        self._step = 0
        self._velocities: dict[str, Tensor] = {}
        self._alike: list[tuple[int, str, str, Tensor]] = []

    def begin_again(self) -> None:
        """What step 0 has evaluated so far was a warm-up."""
        self._velocities.clear()

    def computed(self, step: int, branch: str, v_t: Tensor) -> None:
        """Compares the velocity of ``branch`` with those of other branches in the same evaluation of the step."""
        if step != self._step or branch in self._velocities:
            self._velocities.clear()
            self._step = step
        for other, velocity in self._velocities.items():
            if velocity.shape == v_t.shape and velocity.dtype == v_t.dtype:
                self._alike.append((step, other, branch, (bits_of(velocity) == bits_of(v_t)).all()))
        self._velocities[branch] = v_t.detach().clone()

    def seen(self) -> tuple[tuple[int, str, str], ...]:
        """The steps at which two branches had the same velocity, with the two. Waits for the device."""
        return tuple((step, a, b) for step, a, b, same in self._alike if same)
