"""The CFG-parallel loop for any number of ranks."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from verify.loops.guidance import guide
from verify.protocols import Denoiser, Group, Observe
from verify.request import DenoiseRequest


def round_robin(
    denoiser: Denoiser, request: DenoiseRequest, x_0: Float[Tensor, "tokens channels"], group: Group, observe: Observe
) -> Float[Tensor, "tokens channels"]:
    """Like ``local``, with branch ``i`` on rank ``i mod world size``: three branches fit on two ranks.

    Sends: ``x_0`` from rank 0, once. At a guided step, one all_gather per round of branches. Each gather needs a tensor
    from every rank. So a rank without a branch in the last round sends its last velocity again, and a rank that never
    has a branch evaluates gen; nobody reads these. Outside the interval nothing is sent.

    Source: vllm-omni's ``CFGParallelMixin``.
    """
    schedule, branches = request.schedule, request.branches
    x_t = group.broadcast(x_0)
    for step, (guided, dt) in enumerate(zip(schedule.guided, schedule.dts, strict=True)):
        if guided:
            velocities: list[Tensor] = []
            own: Tensor | None = None
            for first in range(0, len(branches), group.world_size):
                mine = first + group.rank
                if mine < len(branches):
                    own = denoiser.velocity(x_t, step, branches[mine])
                elif own is None:
                    own = denoiser.velocity(x_t, step, "gen")
                velocities += group.all_gather(own)
            v_t = guide(request, velocities[: len(branches)])
        else:
            v_t = denoiser.velocity(x_t, step, "gen")
        x_t = x_t - v_t * dt
        observe(step, x_t)
    return x_t
