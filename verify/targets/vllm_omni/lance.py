"""The target ``vllm_omni_lance``: Lance's image-to-video, that is Bagel's loop with the first frame held fixed.

``verify run --target vllm_omni_lance``. Upstream's ``LanceBagel`` inherits network, loop and schedule from ``Bagel``;
its prompts and pictures are read by encoders of its own, which Bagel's contexts stand in for here.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from verify.errors import BadInput, Unjudged
from verify.protocols import Group, Loop, Observe
from verify.request import DenoiseRequest
from verify.schedule import Schedule
from verify.targets.protocol import REFERENCE, ModelOptions, Prepared
from verify.targets.vllm_omni.denoiser import UpstreamDenoiser
from verify.targets.vllm_omni.loops import generate_image
from verify.targets.vllm_omni.target import VllmOmniTarget

_LOOP = "generate_image"


class LanceTarget(VllmOmniTarget):
    """Lance with ``pinned`` tokens that hold the encoded first frame; 0 is text-to-video."""

    name = "vllm_omni_lance"

    def __init__(self, pinned: str = "4") -> None:
        """
        Raises:
            BadInput: ``pinned`` is no number of tokens.
        """
        if not pinned.isdecimal():
            raise BadInput.of("--target-option pinned", pinned, "a number of tokens", "give one")
        self._pinned = int(pinned)
        self.loops: Mapping[str, Loop] = {REFERENCE: reference, _LOOP: generate_image}

    def schedule(self, request: DenoiseRequest) -> Schedule:
        """Lance's: a point more than Bagel's, so that there are as many steps as timesteps."""
        return Schedule.of(
            request.num_timesteps + 1, request.timestep_shift, request.cfg_interval, len(request.branches) > 1
        )

    def prepare(self, request: DenoiseRequest, options: ModelOptions, rank: int, device: torch.device) -> Prepared:
        """As for Bagel; the pinned tokens of ``x_0`` are the first frame's, on every rank."""
        prepared = super().prepare(request, options, rank, device)
        if self._pinned:
            x_0 = prepared.x_0.clone()
            x_0[: self._pinned] = _first_frame(self._pinned, x_0)
            prepared = replace(prepared, x_0=x_0)
        return prepared

    def denoiser(self, *parts: Any) -> LanceDenoiser:
        """The denoiser that pins tokens."""
        found = LanceDenoiser(*parts)
        found.pin(self._pinned)
        return found


class LanceDenoiser(UpstreamDenoiser):
    """Bagel's denoiser whose network is upstream's ``LanceBagel`` while its loop runs."""

    pinned: Tensor | None = None

    def pin(self, tokens: int) -> None:
        """Holds the first ``tokens`` fixed."""
        self.pinned = torch.arange(tokens, device=self._device) if tokens else None

    def times(self, x_t: Tensor, step: int) -> Tensor:
        """Pinned tokens are clean: for them it is t = 0."""
        t = super().times(x_t, step)
        if self.pinned is not None:
            t[self.pinned] = 0.0
        return t

    def loop_arguments(self, x_0: Tensor) -> dict[str, Any]:
        """With upstream's name for the tokens to hold fixed."""
        arguments = super().loop_arguments(x_0)
        return arguments if self.pinned is None else arguments | {"frame_condition_token_indexes": self.pinned}

    def generate_image(self, x_0: Float[Tensor, "tokens channels"]) -> Float[Tensor, "tokens channels"]:
        try:
            lance = importlib.import_module("vllm_omni.diffusion.models.lance.lance_transformer").LanceBagel
        except ImportError as error:
            raise Unjudged(f"this release of vllm-omni has no Lance ({error}): nothing to judge") from error
        bagel, self.model.__class__ = self.model.__class__, lance
        try:
            return super().generate_image(x_0)
        finally:
            self.model.__class__ = bagel


def reference(
    denoiser: Any, request: DenoiseRequest, x_0: Float[Tensor, "tokens channels"], group: Group, observe: Observe
) -> Float[Tensor, "tokens channels"]:
    """One branch after another; after each step the pinned tokens are what they were, as in upstream's loop for one."""
    schedule, x_t = request.schedule, x_0
    with denoiser.autocast():
        for step, (guided, dt) in enumerate(zip(schedule.guided, schedule.dts, strict=True)):
            branches = request.branches if guided else request.branches[:1]
            velocities = [denoiser.velocity(x_t, step, branch) for branch in branches]
            x_t = x_t - (denoiser.combine(velocities) if guided else velocities[0]) * dt
            if denoiser.pinned is not None:
                x_t[denoiser.pinned] = x_0[denoiser.pinned]
            observe(step, x_t)
    return x_t


def _first_frame(tokens: int, like: Tensor) -> Float[Tensor, "tokens channels"]:
    """What stands for the encoded picture."""
    return torch.linspace(-1, 1, tokens * like.shape[1], device=like.device, dtype=like.dtype).reshape(tokens, -1)
