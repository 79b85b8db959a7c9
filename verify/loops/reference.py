"""The loop in one process."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from verify.loops.guidance import guide
from verify.protocols import Denoiser, Group, Observe
from verify.request import DenoiseRequest


def reference(
    denoiser: Denoiser, request: DenoiseRequest, x_0: Float[Tensor, "tokens channels"], group: Group, observe: Observe
) -> Float[Tensor, "tokens channels"]:
    """Evaluates the branches one after another and sends nothing. The other loops are judged against it.

    Source: Bagel, ``modeling/bagel/bagel.py``, ``generate_image``.
    """
    schedule = request.schedule
    x_t = x_0
    for step, (guided, dt) in enumerate(zip(schedule.guided, schedule.dts, strict=True)):
        if guided:
            v_t = guide(request, [denoiser.velocity(x_t, step, branch) for branch in request.branches])
        else:
            v_t = denoiser.velocity(x_t, step, "gen")
        x_t = x_t - v_t * dt
        observe(step, x_t)
    return x_t
