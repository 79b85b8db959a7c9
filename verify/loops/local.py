"""The CFG-parallel loop without a broadcast: the claim under test."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from verify.loops.guidance import guide
from verify.protocols import Denoiser, Group, Observe
from verify.request import DenoiseRequest


def local(
    denoiser: Denoiser, request: DenoiseRequest, x_0: Float[Tensor, "tokens channels"], group: Group, observe: Observe
) -> Float[Tensor, "tokens channels"]:
    """Every rank combines and steps for itself: equal only if equal inputs give equal bits everywhere.

    Rank ``i`` evaluates branch ``i``; the world size is the number of branches.

    Sends: ``x_0`` from rank 0, once. At a guided step, an all_gather of the branch velocities. At a step outside the
    interval every rank evaluates gen for itself, and nothing is sent.

    Source: vllm-omni PR 1695.
    """
    schedule, branch = request.schedule, request.branches[group.rank]
    x_t = group.broadcast(x_0)
    for step, (guided, dt) in enumerate(zip(schedule.guided, schedule.dts, strict=True)):
        if guided:
            v_t = guide(request, group.all_gather(denoiser.velocity(x_t, step, branch)))
        else:
            v_t = denoiser.velocity(x_t, step, "gen")
        x_t = x_t - v_t * dt
        observe(step, x_t)
    return x_t
