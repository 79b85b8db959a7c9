"""A rank that evaluates only so that every rank has something to exchange: what it evaluates must not matter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from verify.protocols import Denoiser


class PaddingDenoiser:
    """Evaluates as the denoiser does, and answers with other, finite bytes in guided steps.

    A loop that discards them as it should comes to the same ``x_t``. One that uses them does not, although the branch
    that a padding rank evaluates has the same velocity on the rank that it belongs to.
    """

    def __init__(self, denoiser: Denoiser, guided: Sequence[bool]) -> None:
        object.__setattr__(self, "_denoiser", denoiser)
        object.__setattr__(self, "_guided", tuple(guided))

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._denoiser, name, value)

    def __getattr__(self, name: str) -> Any:
        if name in ("_denoiser", "_guided") or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(name)
        return getattr(self._denoiser, name)

    def velocity(self, x_t: Any, step: int, branch: str, **asked: Any) -> Any:
        v_t = self._denoiser.velocity(x_t, step, branch, **asked)
        if not (0 <= step < len(self._guided) and self._guided[step]):
            return v_t
        return {name: _other(part) for name, part in v_t.items()} if isinstance(v_t, Mapping) else _other(v_t)


def _other(v_t: Tensor) -> Tensor:
    return 1 - v_t if v_t.is_floating_point() else v_t
