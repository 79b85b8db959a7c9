"""Upstream's parallel loop behind the suite's contract, and the loop in one process that it is held to.

Upstream's loop knows no denoiser, group or observer. So its calls are led through the suite's from outside, and come
back to upstream's own methods with upstream's own arguments:

    Bagel's single-branch forward(**arguments) -> denoiser.velocity(x_t, step, branch) -> the original, same arguments
    GroupCoordinator.all_gather, .broadcast    -> group.all_gather, .broadcast         -> the originals

Recorder and injected faults thus see this loop as any other, and nothing of upstream is passed by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from verify.protocols import Group, Observe
from verify.request import DenoiseRequest
from verify.schedule import Schedule
from verify.targets.vllm_omni.denoiser import UpstreamDenoiser
from verify.targets.vllm_omni.versions import Version
from verify.targets.vllm_omni.world import parallel_state


def reference(
    denoiser: Any, request: DenoiseRequest, x_0: Float[Tensor, "tokens channels"], group: Group, observe: Observe
) -> Float[Tensor, "tokens channels"]:
    """One branch after another by upstream's single-branch forward, then upstream's combine; nothing is sent."""
    schedule, x_t = request.schedule, x_0
    with denoiser.autocast():
        for step, (guided, dt) in enumerate(zip(schedule.guided, schedule.dts, strict=True)):
            if guided:
                v_t = denoiser.combine([denoiser.velocity(x_t, step, branch) for branch in request.branches])
            else:
                v_t = denoiser.velocity(x_t, step, "gen")
            x_t = x_t - v_t * dt
            observe(step, x_t)
    return x_t


def generate_image(
    denoiser: Any, request: DenoiseRequest, x_0: Float[Tensor, "tokens channels"], group: Group, observe: Observe
) -> Float[Tensor, "tokens channels"]:
    """vllm-omni's ``Bagel.generate_image`` in parallel.

    ``x_t`` after a step is what the forward of the next step is given; after the last step, what the loop returns.
    """
    coordinator = parallel_state().get_cfg_group()
    step = 0

    def forward(**arguments: Any) -> Tensor:
        nonlocal step
        if step:
            observe(step - 1, arguments["x_t"])
        branch = denoiser.branch_of(arguments)
        try:
            with denoiser.handed_over(branch, arguments):
                velocity: Tensor = denoiser.velocity(arguments["x_t"], step, branch)
            return velocity
        finally:
            step += 1

    with led_through(denoiser.model, denoiser.version, coordinator, forward, group.all_gather, group.broadcast):
        final: Tensor = denoiser.generate_image(x_0)
    if step:
        observe(step - 1, final)
    return final


@contextmanager
def led_through(
    model: Any,
    version: Version,
    coordinator: Any,
    forward: Callable[..., Tensor],
    all_gather: Callable[[Tensor], list[Tensor]],
    broadcast: Callable[[Tensor, int], Any],
) -> Iterator[None]:
    """Puts functions before upstream's forward and collectives, on the instances, until the block ends."""

    with ExitStack() as stack:
        stack.enter_context(replaced(model, version.single_branch, forward))
        stack.enter_context(led_to(coordinator, all_gather, broadcast))
        yield


@contextmanager
def led_to(
    coordinator: Any, all_gather: Callable[[Tensor], list[Tensor]], broadcast: Callable[[Tensor, int], Any]
) -> Iterator[None]:
    """Puts functions before the collectives of an upstream group until the block ends."""

    def gather_separately(tensor: Tensor, dim: int = 0, separate_tensors: bool = False) -> list[Tensor]:
        if dim != 0 or not separate_tensors:
            raise LookupError("upstream's loop gathers in a way this target does not know: not separate tensors, dim 0")
        return all_gather(tensor)

    def send(tensor: Tensor, src: int = 0) -> Tensor:
        broadcast(tensor, src)
        return tensor

    with replaced(coordinator, "all_gather", gather_separately), replaced(coordinator, "broadcast", send):
        yield


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Hides what an object or module has under a name until the block ends."""
    before = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


def measured_schedule(denoiser: UpstreamDenoiser, coordinator: Any) -> Schedule:
    """The steps that upstream's loop takes and guides, seen by running it with a network that costs nothing.

    Nothing is sent. A step is guided if something is gathered in it; the last one ends at t = 0.
    """
    times: list[float] = []
    guided: list[bool] = []

    def forward(**arguments: Any) -> Tensor:
        times.append(arguments["timestep"].max().item())  # Lance holds some tokens at 0.
        guided.append(False)
        return torch.zeros_like(arguments["x_t"], dtype=torch.bfloat16)

    def all_gather(tensor: Tensor) -> list[Tensor]:
        guided[-1] = True
        return [tensor.clone() for _ in range(coordinator.world_size)]

    x_0 = torch.zeros_like(denoiser.shared["packed_init_noises"], dtype=torch.float32)
    hooks = (forward, all_gather, lambda tensor, src: tensor)
    with led_through(denoiser.model, denoiser.version, coordinator, *hooks):
        denoiser.generate_image(x_0)
    points = torch.tensor([*times, 0.0], dtype=torch.float32)
    return Schedule(tuple(times), points[:-1] - points[1:], tuple(guided))
