"""The built-in target with one weight changed in the victim's replica, reference included."""

from __future__ import annotations

import os

import torch

from verify.request import DenoiseRequest
from verify.targets.builtin import BuiltinTarget
from verify.targets.protocol import ModelOptions, Prepared


class OneWeight(BuiltinTarget):
    """What a replica computes is consistent in itself, and differs from the other's."""

    name = "one_weight"

    def prepare(self, request: DenoiseRequest, options: ModelOptions, rank: int, device: torch.device) -> Prepared:
        prepared = super().prepare(request, options, rank, device)
        ranks = len(request.branches)
        number = int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))
        if number // ranks == int(os.environ["VICTIM"]) // ranks:
            with torch.no_grad():
                prepared.denoiser.model.llm2vae.weight[0, 0] += 0.5  # type: ignore[attr-defined]
        return prepared


target = OneWeight()
