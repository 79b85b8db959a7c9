"""What ranks do with vllm-omni besides running its loop."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from verify.bagel.config import preset
from verify.bagel.denoiser import initial_noise
from verify.bits import same_bits
from verify.combine import combine_cfg
from verify.fuzz.case import Case
from verify.fuzz.layouts import lay_out
from verify.ranks.group import Alone
from verify.ranks.rank import Rank
from verify.request import DenoiseRequest
from verify.schedule import Schedule
from verify.targets.protocol import ModelOptions
from verify.targets.vllm_omni.denoiser import UpstreamDenoiser
from verify.targets.vllm_omni.loops import reference
from verify.targets.vllm_omni.target import VllmOmniTarget, _model
from verify.targets.vllm_omni.world import world


def schedules(rank: Rank, requests: Sequence[DenoiseRequest]) -> list[Schedule]:
    """The schedule that upstream's loop follows for each request."""
    found = []
    for request in requests:
        with torch.no_grad():
            prepared = VllmOmniTarget().prepare(request, ModelOptions(), rank.rank, rank.device)
        assert prepared.followed is not None
        found.append(prepared.followed)
    return found


def combine_differences(rank: Rank, cases: Sequence[Case], autocast: bool) -> list[int]:
    """The cases for which upstream's combine and the suite's give other bits.

    At an image scale not above 1 upstream drops the image branch, as a request does; the suite's function is then
    called without it.
    """
    upstream = VllmOmniTarget().combine
    different = []
    for number, case in enumerate(cases):
        with torch.no_grad(), torch.autocast(rank.device.type, torch.bfloat16, enabled=autocast):
            results = []
            for combine in (upstream, combine_cfg):
                gen, text, *img = lay_out(case, rank.device).branches
                settings = (case.text_scale, case.img_scale, case.renorm_type, case.renorm_min)
                dropped = combine is combine_cfg and not case.img_scale > 1.0
                results.append(combine(gen, text, img[0] if img and not dropped else None, *settings))
        if not same_bits(*results):
            different.append(number)
    return different


def velocities(
    rank: Rank, request: DenoiseRequest, checkpoint: str, steps: Sequence[int]
) -> tuple[dict[tuple[int, str], Tensor], list[float], bool]:
    """Upstream's float32 velocities at the request's noise, the times they are for, and how it treats no prompt."""
    options = ModelOptions(dtype="float32", checkpoint=checkpoint)
    with torch.no_grad():
        prepared = VllmOmniTarget().prepare(request, options, rank.rank, rank.device)
        x_0 = initial_noise(request, prepared.x_0.shape[1]).to(rank.device)
        found = {
            (step, branch): prepared.denoiser.velocity(x_0, step, branch)
            for step in steps
            for branch in request.branches
        }
    assert prepared.followed is not None
    denoiser = prepared.denoiser
    assert isinstance(denoiser, UpstreamDenoiser)
    return found, list(prepared.followed.timesteps), denoiser.version.empty_prompt_prefills


def single_process(rank: Rank, request: DenoiseRequest, schedule: Schedule) -> tuple[Tensor, Tensor]:
    """The final latents of upstream's loop in one process, and of the sequential loop. For a pool of one rank."""
    here = world(rank.device)
    config, model = _model(ModelOptions(), rank.device)
    with torch.no_grad():
        denoiser = UpstreamDenoiser(model, config, here.version, request, rank.device)
        denoiser.schedule = schedule
        x_0 = initial_noise(request, preset("tiny").config.latent_channels)
        joint = denoiser.generate_image(x_0.clone())
        in_turn = reference(denoiser, request.resolved(schedule), x_0, Alone(), lambda step, x_t, state=None: None)
    return joint, in_turn
