"""Upstream's network on this rank with one request's contexts, as loops see a denoiser."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from verify.bagel.config import BagelConfig
from verify.bagel.context import condition_latents, prompt_tokens
from verify.bagel.model import BagelModel
from verify.request import PIXELS_PER_TOKEN_SIDE, DenoiseRequest
from verify.schedule import Schedule
from verify.targets.vllm_omni.contexts import Prefill, placed
from verify.targets.vllm_omni.versions import BRANCH_ARGUMENTS, Version


class UpstreamDenoiser:
    """Velocities by upstream's single-branch forward.

    Upstream's loop hands over its own arguments (:meth:`handed_over`); called by any other loop, the arguments are
    those that upstream's own preparation makes.

    Attributes:
        model: upstream's Bagel.
        contexts: each branch's context.
    """

    def __init__(
        self, model: Any, config: BagelConfig, version: Version, request: DenoiseRequest, device: torch.device
    ) -> None:
        self.model, self.version, self.request, self._device = model, version, request, device
        self._half = next(model.parameters()).dtype is torch.bfloat16
        prefill = Prefill(model, config, device)
        of_size = cast(BagelModel, _Sized(config, device))
        # The same prompt and condition image as the built-in target's, so that the two can be compared.
        image = condition_latents(of_size, request) if "img" in request.branches else None
        with self.autocast():
            self.contexts = prefill.contexts(
                prompt_tokens(of_size, request.seed)[1:-1], image, request.grid, version.empty_prompt_prefills
            )
        sizes = [tuple(side * PIXELS_PER_TOKEN_SIDE for side in request.grid)]
        gen = self.contexts["gen"]
        # It also draws noise, from the global generator, which the suite's replaces.
        with torch.random.fork_rng(devices=[]):
            shared = model.prepare_vae_latent(gen.kv_lens, gen.ropes, sizes, prefill.marker_ids)
        self.shared = placed(shared, device)
        self.own = {
            branch: placed(model.prepare_vae_latent_cfg(context.kv_lens, context.ropes, sizes), device)
            for branch, context in self.contexts.items()
        }
        self._forward = getattr(model, version.single_branch)  # The original, whatever hides it later.
        self._combine = getattr(model, version.combine)
        self._handed_over: tuple[str, dict[str, Any]] | None = None
        self.schedule: Schedule = request.schedule

    def autocast(self) -> torch.autocast:
        """bf16 autocast, as upstream's pipeline runs on a GPU; on a CPU the generation path needs it as well.

        A float32 network runs without.
        """
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._half)

    def velocity(
        self, x_t: Float[Tensor, "tokens channels"], step: int, branch: str, **asked: Any
    ) -> Float[Tensor, "tokens channels"]:
        """The velocity of ``branch``, in the network's dtype."""
        handed = self._handed_over
        arguments = handed[1] if handed and handed[0] == branch else self._arguments(x_t, step, branch)
        with self.autocast():
            velocity: Tensor = self._forward(**arguments | {"x_t": x_t})
        return velocity

    def combine(self, velocities: Sequence[Float[Tensor, "tokens channels"]]) -> Float[Tensor, "tokens channels"]:
        """Upstream's combine of branch velocities in rank order."""
        gen, text, *rest = velocities
        r = self.request
        with self.autocast():
            combined: Tensor = self._combine(
                gen,
                text,
                rest[0] if rest else None,
                r.cfg_text_scale,
                r.cfg_img_scale,
                r.cfg_renorm_type,
                r.cfg_renorm_min,
            )
        return combined

    @contextmanager
    def handed_over(self, branch: str, arguments: dict[str, Any]) -> Iterator[None]:
        """Within the block, upstream's loop asks for the velocity of ``branch`` with these arguments."""
        self._handed_over = branch, arguments
        try:
            yield
        finally:
            self._handed_over = None

    def branch_of(self, arguments: dict[str, Any]) -> str:
        """Which branch upstream's loop asks for: told by the identity of the cache it hands over."""
        for branch, context in self.contexts.items():
            if arguments["past_key_values"] is context.past_key_values:
                return branch
        raise LookupError("upstream's loop handed over a cache that is none of the request's contexts")

    def _arguments(self, x_t: Tensor, step: int, branch: str) -> dict[str, Any]:
        shared = {name: value for name, value in self.shared.items() if name != "packed_init_noises"}
        own = {BRANCH_ARGUMENTS[name]: value for name, value in self.own[branch].items()}
        times = self.times(x_t, step)
        return shared | own | {"timestep": times, "past_key_values": self.contexts[branch].past_key_values}

    def times(self, x_t: Float[Tensor, "tokens channels"], step: int) -> Float[Tensor, " tokens"]:
        """The time that the network is told for each token."""
        return torch.full((len(x_t),), self.schedule.timesteps[step], device=x_t.device)

    def loop_arguments(self, x_0: Float[Tensor, "tokens channels"]) -> dict[str, Any]:
        """The arguments of its pipeline for upstream's loop."""
        r = self.request
        arguments = self.shared | {
            "packed_init_noises": x_0,
            "num_timesteps": r.num_timesteps,
            "timestep_shift": r.timestep_shift,
            "cfg_interval": r.cfg_interval,
            "cfg_text_scale": r.cfg_text_scale,
            "cfg_img_scale": r.cfg_img_scale,
            "cfg_renorm_type": r.cfg_renorm_type,
            "cfg_renorm_min": r.cfg_renorm_min,
            "past_key_values": self.contexts["gen"].past_key_values,
        }
        for branch in ("text", "img"):
            arguments[f"cfg_{branch}_past_key_values"] = self.contexts[branch].past_key_values
            for name, value in self.own[branch].items():
                arguments[f"cfg_{branch}_{name.removeprefix('cfg_')}"] = value
        return arguments

    def generate_image(self, x_0: Float[Tensor, "tokens channels"]) -> Float[Tensor, "tokens channels"]:
        """Upstream's loop; whatever it returns besides, the final latent."""
        with self.autocast():
            returned = self.model.generate_image(**self.loop_arguments(x_0))
        # One latent an image, in later versions beside a trajectory.
        while not isinstance(returned, Tensor):
            returned = returned[0]
        return returned


class _Sized:
    """What the seeded prompt and condition image are drawn for: a geometry and a device, without a network."""

    def __init__(self, config: BagelConfig, device: torch.device) -> None:
        self.config, self.device = config, device
