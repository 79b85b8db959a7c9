"""The target ``vllm_omni``: the installed package's own CFG-parallel loop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from verify.bagel.checkpoint import checkpoint_tensors, config_of
from verify.bagel.config import BagelConfig, preset
from verify.bagel.denoiser import initial_noise
from verify.bagel.published import published_name
from verify.bagel.weights import seeded_parameters
from verify.errors import BadInput, Unjudged
from verify.expected import Exchanges
from verify.protocols import Loop
from verify.request import DenoiseRequest
from verify.targets.protocol import REFERENCE, ModelOptions, Prepared
from verify.targets.vllm_omni import stand_ins
from verify.targets.vllm_omni.contexts import CacheView
from verify.targets.vllm_omni.denoiser import UpstreamDenoiser
from verify.targets.vllm_omni.loops import generate_image, measured_schedule, reference
from verify.targets.vllm_omni.model import build_upstream
from verify.targets.vllm_omni.stepwise import stepwise
from verify.targets.vllm_omni.versions import cannot_be_driven, installed_version
from verify.targets.vllm_omni.world import UpstreamGroup, World, world
from verify.verdict import Finding

WEIGHTS_SEED = 1
_LOOP, _STEPWISE = "generate_image", "stepwise"
_ALWAYS_SUBSTITUTED = (
    "tokenizer, VAE and image encoder: token ids, latents, none",
    "BagelPipeline.forward: its calls, in its order; its weights loader is real",
)
_EXTRA_STEP = (
    "known: vllm-omni issue 4470. A schedule of N + 1 points takes N Euler steps where Bagel takes N - 1; of all "
    "releases from 0.18.0 to 0.30.0 0.22.0 alone has it"
)
_BOUND = (
    "known: the interval's bound is compared in float32 by Bagel and by vllm-omni through 0.20.0, as a host float "
    "(float64) from 0.22.0 on; they differ where a step falls on a bound: with a shift of 3 and a bound of 0.4 for 12, "
    "23, 34, 45, 67, 78, 89 and 100 timesteps. Ranks that disagree would wait for each other"
)


class VllmOmniTarget:
    """vllm-omni's ``Bagel.generate_image``, its groups, model and loader, with seeded weights or a checkpoint."""

    name = "vllm_omni"
    warm_up = "verify.targets.vllm_omni.world:warm_up"
    loops: Mapping[str, Loop] = {REFERENCE: reference, _LOOP: generate_image, _STEPWISE: stepwise}
    expects: Mapping[str, str | Exchanges] = {REFERENCE: REFERENCE, _LOOP: "local", _STEPWISE: "local"}
    # Only the newest releases execute Bagel step by step: --loops stepwise judges that.
    default = (_LOOP,)
    bagel_options = ("weights",)

    def prepare(self, request: DenoiseRequest, options: ModelOptions, rank: int, device: torch.device) -> Prepared:
        """The denoiser of this request; the network under it is kept for the next one."""
        installed = installed_version()
        _require_servable(request, options)
        here = world(device)
        doing = "building its Bagel"
        try:
            dtype = stand_ins.generation_dtype(options.torch_dtype)
            config, model = _model(options, device)
            doing = "preparing a request"
            denoiser = self.denoiser(model, config, here.version, request, device)
            doing = "running its loop without a network, to see its schedule"
            denoiser.schedule = measured_schedule(denoiser, here.coordinator)
        except (BadInput, Unjudged):
            raise
        except Exception as error:
            raise cannot_be_driven(installed, doing, error) from error
        if not denoiser.schedule.steps:
            raise Unjudged(f"vllm-omni {installed} took no step through {here.version.single_branch}: nothing to judge")
        return Prepared(
            denoiser,
            initial_noise(request, config.latent_channels, rank).to(device),
            {branch: CacheView(denoiser.contexts[branch].past_key_values) for branch in request.branches},
            notes=_notes(here, dtype),
            group=UpstreamGroup(here.coordinator),
            followed=denoiser.schedule,
            environment=_environment(here, model) | {"autocast": not dtype},
        )

    def denoiser(self, *parts: Any) -> UpstreamDenoiser:
        """The denoiser of a request, made of these parts."""
        return UpstreamDenoiser(*parts)

    def combine(self, gen: Tensor, *others: Any) -> Tensor:
        """Upstream's combine, with the arguments of ``verify.combine_cfg``: for ``verify fuzz --target vllm_omni``.

        Raises:
            Unjudged: vllm-omni is not installed, or cannot be driven.
        """
        here = world(gen.device)
        combined: Tensor = getattr(here.bagel_class, here.version.combine)(gen, *others)
        return combined

    def explain(self, finding: Finding) -> tuple[str, ...]:
        """The public report of a schedule that is not Bagel's."""
        if finding.name != "schedule" or finding.first_divergence is None:
            return ()
        return (_EXTRA_STEP if finding.first_divergence.tensor == "number of steps" else _BOUND,)


def _require_servable(request: DenoiseRequest, options: ModelOptions) -> None:
    if options.dtype not in ("bfloat16", "float32"):
        expected = "bfloat16, which vllm-omni's generation path names, or float32 in its place"
        raise BadInput.of("dtype", options.dtype, expected, "choose one")
    if len(request.branches) < 2:
        raise BadInput.of(
            "cfg_text_scale",
            request.cfg_text_scale,
            "above 1.0: without guidance vllm-omni sends nothing, not even the noise, and nothing runs in parallel",
            "raise it",
        )
    if len(request.branches) != dist.get_world_size():
        raise BadInput.of(
            "world size",
            dist.get_world_size(),
            f"{len(request.branches)}, one rank for each of {', '.join(request.branches)}, which vllm-omni requires",
            "leave --world-size out",
        )


def _notes(here: World, dtype: str) -> tuple[str, ...]:
    entry = here.version.name
    driven = "" if entry == here.installed else f", not a version named here, driven as {entry}"
    return (
        f"vllm-omni {here.installed}{driven}: loop, combine, process groups, transformer, KV caches, input preparation "
        "and weights loader are its own",
        *(f"substituted: {what}" for what in (*here.substituted, *_ALWAYS_SUBSTITUTED, dtype) if what),
        *(
            ()
            if dtype
            else ("the loop runs under bf16 autocast, as its pipeline does on a GPU, whatever --no-autocast",)
        ),
    )


def _environment(here: World, model: Any) -> dict[str, Any]:
    backends = {module.attn_backend.__name__ for module in model.modules() if hasattr(module, "attn_backend")}
    return {
        "vllm_omni": here.installed,
        "vllm": metadata.version("vllm"),
        "attention": ", ".join(sorted(backends)) or "flash_attn_varlen_func",
    }


@lru_cache(maxsize=1)
def _model(options: ModelOptions, device: torch.device) -> tuple[BagelConfig, Any]:
    named = None if options.bagel is None else options.bagel.weights
    checkpoint = options.checkpoint
    config = preset(options.preset).config if checkpoint is None else config_of(Path(checkpoint), named)
    weights = _weights(config, options, named, device)
    return config, build_upstream(config, weights, options.torch_dtype, device)


def _weights(
    config: BagelConfig, options: ModelOptions, named: str | None, device: torch.device
) -> Iterator[tuple[str, Tensor]]:
    """Every weight in the published layout: the built-in target's seeded ones, or a checkpoint's."""
    if options.checkpoint is not None:
        yield from checkpoint_tensors(Path(options.checkpoint), named)
        return
    for name, tensor in seeded_parameters(config, options.torch_dtype, device, WEIGHTS_SEED):
        yield published_name(name), tensor
