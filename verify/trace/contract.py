"""What a loop may hand to the suite: the steps and latents that it shows, and what it returns."""

from __future__ import annotations

import operator
import sys
from typing import Any

import torch
from torch import Tensor

from verify.bits import describe
from verify.errors import BadInput


def checked_step(step: Any, expected: int) -> None:
    """Accepts ``expected`` as anything that Python takes for an index: an int, NumPy's integers, a 0-d tensor.

    Raises:
        BadInput: it is something else.
    """
    try:
        if isinstance(step, bool):
            raise TypeError
        number = operator.index(step)
    except TypeError:
        raise BadInput.of("the step given to observe", step, "an int", "pass the loop's step counter") from None
    if number != expected:
        raise BadInput.of("the step given to observe", step, f"{expected}", "call it once after each step, in order")


def checked_latent(what: str, x_t: Any, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``x_t`` as a plain tensor. A DTensor that every rank holds whole is taken for the tensor that it holds.

    Raises:
        BadInput: it is no latent like ``x_0``.
    """
    placements = getattr(x_t, "placements", None)
    if isinstance(x_t, Tensor) and placements and all(placement.is_replicate() for placement in placements):
        x_t = x_t.to_local()  # type: ignore[attr-defined]
    if not isinstance(x_t, Tensor):
        raise BadInput.of(what, describe(x_t), "a tensor", "pass the latent itself")
    if hasattr(x_t, "placements"):
        raise BadInput.of(what, "a sharded DTensor", "a plain tensor", "pass x_t.to_local() or x_t.full_tensor()")
    if x_t.layout != torch.strided:
        raise BadInput.of(what, f"a {x_t.layout} tensor", "a dense one, as x_0", "pass x_t.to_dense()")
    if (x_t.shape, x_t.dtype, x_t.device) != (shape, dtype, device):
        expected = torch.empty(shape, dtype=dtype, device="meta")
        raise BadInput(
            f"{what} is {describe(x_t)} on {x_t.device}, expected {describe(expected)} on {device}, as x_0; "
            "keep x_t in x_0's shape, dtype and device"
        )
    return x_t


def plain_copy(x_t: Tensor) -> Tensor:
    """A copy of its own on the same device, dense, without the marks of lazily negated or conjugated views."""
    return x_t.detach().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)


def caller() -> str:
    """File and line of the first frame outside the recorder, for a breach that raises nothing."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("verify.trace"):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
