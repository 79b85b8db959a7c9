"""Upstream's loop of a family behind the suite's contract, in parallel and in one process.

Its calls are led through the suite's from outside and come back to upstream's own methods:

    pipeline.predict_noise(**call)  -> denoiser.velocity(x_t, step, branch) -> the original, the same call
    GroupCoordinator.all_gather     -> group.all_gather                     -> the original
    what the scheduler's step gives -> observe(step, x_t)

In one process the CFG group is one of a single rank, so that upstream's sequential path runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from verify.protocols import Group, Observe
from verify.request import DenoiseRequest
from verify.targets.vllm_omni.families.denoiser import FamilyDenoiser
from verify.targets.vllm_omni.loops import led_to, replaced
from verify.targets.vllm_omni.world import parallel_state


def reference(denoiser: Any, request: DenoiseRequest, x_0: Tensor, group: Group, observe: Observe) -> Tensor:
    """Upstream's loop with a CFG group of one rank: one branch after another."""
    with alone():
        return _looped(denoiser, x_0, observe)


def parallel(denoiser: Any, request: DenoiseRequest, x_0: Tensor, group: Group, observe: Observe) -> Tensor:
    """Upstream's loop with its CFG group."""
    coordinator = parallel_state().get_cfg_group()
    with led_to(coordinator, group.all_gather, group.broadcast):
        return _looped(denoiser, x_0, observe)


def _looped(denoiser: Any, x_0: Tensor, observe: Observe) -> Tensor:
    family, step = denoiser.family, 0
    pipeline = family.pipeline()
    predict_noise = pipeline.predict_noise

    def predict(**call: Any) -> Tensor:
        branch = family.branch_of(call)
        with denoiser.handed_over(branch, call, predict_noise):
            velocity: Tensor = denoiser.velocity(family.latent_in(call), step, branch)
        return velocity if family.falls else -velocity

    def stepped(x_t: Tensor) -> None:
        nonlocal step
        observe(step, x_t)
        step += 1

    with replaced(pipeline, "predict_noise", predict), shown(family.steps_with, pipeline, stepped):
        final: Tensor = family.denoise(pipeline, x_0)
    return final


def step_of(steps_with: str, pipeline: Any) -> tuple[Any, str]:
    """What has the method that takes a step, and the method's name; its second argument is the timestep."""
    return (pipeline, "scheduler_step") if steps_with == "pipeline" else (pipeline.scheduler, "step")


@contextmanager
def shown(steps_with: str, pipeline: Any, stepped: Callable[[Tensor], None]) -> Iterator[None]:
    """Tells of the latent that each step gives."""
    owner, name = step_of(steps_with, pipeline)
    original = getattr(owner, name)

    def step(*arguments: Any, **named: Any) -> Any:
        given = original(*arguments, **named)
        stepped(given if isinstance(given, Tensor) else given[0])
        return given

    with replaced(owner, name, step):
        yield


@contextmanager
def alone() -> Iterator[None]:
    """For upstream, the CFG group is one of this rank alone."""
    with replaced(parallel_state(), "_CFG", SimpleNamespace(world_size=1, rank_in_group=0)):
        yield


def rehearse(denoiser: FamilyDenoiser) -> None:
    """Runs upstream's loop in one process with a network that answers 0, and keeps its calls and times."""
    calls: dict[tuple[int, str], Any] = {}
    times: list[float] = []
    family = denoiser.family
    pipeline = family.pipeline()

    def predict(**call: Any) -> Tensor:
        calls[len(times), family.branch_of(call)] = call
        return torch.zeros_like(family.latent_in(call))

    owner, name = step_of(family.steps_with, pipeline)
    original = getattr(owner, name)

    def step(*arguments: Any, **named: Any) -> Any:
        times.append(float(arguments[1]))
        return original(*arguments, **named)

    with ExitStack() as stack:
        stack.enter_context(alone())
        stack.enter_context(replaced(pipeline, "predict_noise", predict))
        stack.enter_context(replaced(owner, name, step))
        # What a scheduler draws here must leave the generators as they were.
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(torch.no_grad() if not torch.is_inference_mode_enabled() else nullcontext())
        family.denoise(pipeline, torch.zeros(family.latent_shape(), dtype=family.asked.dtype, device=family.device))
    denoiser.calls, denoiser.times = calls, tuple(times)
