"""The built-in target under other names: as it is, and with velocities twice as large."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from verify.targets.builtin import BuiltinTarget
from verify.targets.protocol import Prepared


class Same(BuiltinTarget):
    name = "same"


class Doubled(BuiltinTarget):
    name = "doubled"

    def prepare(self, *arguments: Any) -> Prepared:
        prepared = super().prepare(*arguments)
        return replace(prepared, denoiser=_Twice(prepared.denoiser))


class _Twice:
    def __init__(self, denoiser: Any) -> None:
        self._denoiser = denoiser

    def velocity(self, x_t: Tensor, step: int, branch: str) -> Tensor:
        return 2 * self._denoiser.velocity(x_t, step, branch)
