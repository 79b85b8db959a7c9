"""The CFG-parallel loop with a broadcast at every step."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from verify.loops.guidance import guide
from verify.protocols import Denoiser, Group, Observe
from verify.request import DenoiseRequest


def broadcast(
    denoiser: Denoiser, request: DenoiseRequest, x_0: Float[Tensor, "tokens channels"], group: Group, observe: Observe
) -> Float[Tensor, "tokens channels"]:
    """Rank 0 alone combines and steps, and sends ``x_t`` to the others: equal by construction.

    Rank ``i`` evaluates branch ``i``; the world size is the number of branches.

    Sends: ``x_0`` from rank 0, once. At a guided step, an all_gather of the branch velocities, then a broadcast of
    ``x_t``. At a step outside the interval only rank 0 evaluates, and broadcasts ``x_t``.

    Source: vllm-omni before PR 1695.
    """
    schedule, branch = request.schedule, request.branches[group.rank]
    x_t = group.broadcast(x_0)
    for step, (guided, dt) in enumerate(zip(schedule.guided, schedule.dts, strict=True)):
        if guided:
            velocities = group.all_gather(denoiser.velocity(x_t, step, branch))
        if group.rank == 0:
            v_t = guide(request, velocities) if guided else denoiser.velocity(x_t, step, "gen")
            x_t = x_t - v_t * dt
        group.broadcast(x_t)
        observe(step, x_t)
    return x_t
