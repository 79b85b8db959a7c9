"""The mixin shares no noise, and a scheduler that draws noise has a generator a rank: ``python mixin_noise.py``.

vllm-omni 0.30.0, two gloo ranks on a CPU. ``FluxPipeline.diffuse`` with a stand-in transformer: with equal noise ranks
agree; with noise of their own nothing shares it; with a checkpoint's scheduler that draws in each step
(``stochastic_sampling``) ranks part at once, since ``diffuse`` hands the scheduler no generator.
"""

from __future__ import annotations

from typing import Any

import torch
from common import everyone, launch
from torch import Tensor, nn


class Tiny(nn.Module):
    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: Any) -> tuple[Tensor]:
        return (torch.tanh(hidden_states + encoder_hidden_states.mean()),)


def final(noise: Tensor, stochastic: bool) -> Tensor:
    from diffusers import FlowMatchEulerDiscreteScheduler
    from vllm_omni.diffusion.models.flux.pipeline_flux import FluxPipeline

    class Shell(FluxPipeline):
        interrupt, joint_attention_kwargs = False, None

    pipeline = Shell.__new__(Shell)
    nn.Module.__init__(pipeline)
    pipeline.transformer = Tiny()
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=stochastic)
    pipeline.scheduler.set_timesteps(5)
    ids, prompts = torch.zeros(3, 3), (torch.ones(1, 3, 4), -torch.ones(1, 3, 4))
    found: Tensor = pipeline.diffuse(
        prompts[0], prompts[0][:, 0], prompts[1], prompts[1][:, 0], noise, ids, ids, ids,
        pipeline.scheduler.timesteps, True, None, 4.0,
    )  # fmt: skip
    return found


def main(rank: int, ranks: int) -> None:
    torch.manual_seed(rank)  # What a process draws from where nobody hands it a generator.
    for said, seed, stochastic in (
        ("equal noise", 0, False),
        ("noise of each rank's own", rank, False),
        ("equal noise, a scheduler that draws", 0, True),
    ):
        latents = everyone(final(torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(seed)), stochastic))
        if rank == 0:
            print(f"{said}: final latents differ by up to {(latents[0] - latents[1]).abs().max().item():.3g}")


if __name__ == "__main__":
    launch(main, 2)
