"""The target ``vllm_omni_family``: one of vllm-omni's other model families, by upstream's own loop.

``verify run --target vllm_omni_family --target-option family=flux``
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from verify.errors import BadInput, Unjudged
from verify.protocols import Loop
from verify.request import DenoiseRequest
from verify.schedule import Schedule
from verify.targets.protocol import REFERENCE, ModelOptions, Prepared
from verify.targets.vllm_omni.families.denoiser import FamilyDenoiser
from verify.targets.vllm_omni.families.family import Asked, Family
from verify.targets.vllm_omni.families.loops import parallel, reference, rehearse
from verify.targets.vllm_omni.families.registry import family_named
from verify.targets.vllm_omni.versions import cannot_be_driven, installed_version
from verify.targets.vllm_omni.world import UpstreamGroup, world

LOOP = "diffuse"
OWN, SEEDED, ENGINE = NOISES = ("own", "seeded", "engine")
ON, OFF = SWITCH = ("on", "off")
PLAIN, STOCHASTIC = SCHEDULERS = ("plain", "stochastic")


class FamilyTarget:
    """One family of vllm-omni. Of a request it reads size, ``num_timesteps``, shift, ``cfg_text_scale`` and seed."""

    name = "vllm_omni_family"
    warm_up = "verify.targets.vllm_omni.world:warm_up"
    ignores = ("cfg_interval", "cfg_img_scale", "cfg_renorm_type", "cfg_renorm_min", "dtype")

    def __init__(self, family: str, noise: str = SEEDED, guidance: str = ON, scheduler: str = PLAIN) -> None:
        """
        Args:
            family: which; ``registry.py`` lists them.
            noise: ``seeded``: every rank draws the request's, as under an engine that is given a seed; ``engine``: as
                under an engine that is given none; or ``own``: each rank's is another.
            guidance: ``off``: a request without guidance, sent to a server with CFG parallelism.
            scheduler: ``stochastic``: one that draws noise in each step.

        Raises:
            BadInput: one of them is not known.
        """
        for option, value, known in (
            ("noise", noise, NOISES),
            ("guidance", guidance, SWITCH),
            ("scheduler", scheduler, SCHEDULERS),
        ):
            if value not in known:
                raise BadInput.of(f"--target-option {option}", value, f"one of {', '.join(known)}", "choose one")
        self._family = family_named(family)
        self._seeds: dict[DenoiseRequest, int] = {}
        self._noise, self._guided, self._stochastic = noise, guidance == ON, scheduler == STOCHASTIC
        self.loops: Mapping[str, Loop] = {REFERENCE: reference, LOOP: parallel}
        self.expects: Mapping[str, str] = {LOOP: "local" if self._guided else "any"}

    def branches(self, request: DenoiseRequest) -> tuple[str, ...]:
        """The family's, or the first alone without guidance."""
        if request.cfg_img_scale > 1.0:
            raise BadInput.of("cfg_img_scale", request.cfg_img_scale, "1.0: a family's own branches", "leave it out")
        return self._family.branches if self._scale(request) > 1.0 else self._family.branches[:1]

    def schedule(self, request: DenoiseRequest) -> Schedule:
        """That of the family's scheduler."""
        return self._family.schedule(self._asked(request))

    def prepare(self, request: DenoiseRequest, options: ModelOptions, rank: int, device: torch.device) -> Prepared:
        """The family's stand-in network and prompts, and upstream's calls as a rehearsal of its loop makes them."""
        installed = installed_version()
        here = world(device)
        if self._stochastic and not self._family.draws:
            raise Unjudged(f"{self._family.name}: its scheduler draws no noise")
        try:
            family = self._family(self._asked(request), device)
            denoiser = FamilyDenoiser(family)
            rehearse(denoiser)
        except (BadInput, Unjudged):
            raise
        except Exception as error:
            raise cannot_be_driven(installed, f"preparing {self._family.name}", error) from error
        seed = self._seed(request, rank)
        noise = torch.randn(family.latent_shape(), generator=torch.Generator().manual_seed(seed))
        return Prepared(
            denoiser,
            noise.to(device),
            {branch: {"prompt": prompt} for branch, prompt in family.prompts.items()},
            notes=_notes(installed, self._family, here.substituted),
            group=UpstreamGroup(here.coordinator),
            environment={"vllm_omni": installed, "autocast": False},
            draws=self._stochastic,
            sends=None if family.falls else torch.neg,
            equal_noise=self._noise != OWN,
        )

    def _seed(self, request: DenoiseRequest, rank: int) -> int:
        if self._noise != ENGINE:
            return 1000 * request.seed + (rank if self._noise == OWN else 0)
        if request not in self._seeds:
            self._seeds[request] = _seed_of_the_engine(rank)
        return self._seeds[request]

    def _scale(self, request: DenoiseRequest) -> float:
        return request.cfg_text_scale if self._guided else 1.0

    def _asked(self, request: DenoiseRequest) -> Asked:
        return Asked(
            steps=request.num_timesteps - 1,
            grid=request.grid,
            scale=self._scale(request),
            shift=request.timestep_shift,
            seed=request.seed,
            dtype=torch.float32,
            stochastic=self._stochastic,
        )


def _seed_of_the_engine(rank: int) -> int:
    """The seed that upstream gives a request without one: once, where it is made; every rank is sent the request."""
    made: list[Any] = [None]
    if rank == 0:
        sampling = importlib.import_module("vllm_omni.inputs.data").OmniDiffusionSamplingParams()
        request = importlib.import_module("vllm_omni.diffusion.request").OmniDiffusionRequest
        made = [request(prompt={"prompt": ""}, sampling_params=sampling, request_id="the request").sampling_params.seed]
    dist.broadcast_object_list(made, src=0)
    if made[0] is None:  # Then each rank draws by its own generator.
        return int(torch.seed())
    return int(made[0])


def _notes(installed: str, family: type[Family], substituted: tuple[str, ...]) -> tuple[str, ...]:
    return (
        f"vllm-omni {installed}: {family.pipeline_class}'s loop, the mixin, combine, scheduler class and process "
        "groups are its own",
        *(
            f"substituted: {what}"
            for what in (
                *substituted,
                "encoders and VAE: seeded prompts, none",
                "weights and latents: float32",
                family.stands_in,
            )
        ),
    )
