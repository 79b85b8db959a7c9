"""An imagined engine: each rank weighs its branch, and a sum over the ranks is the guided prediction."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

TOKENS, CHANNELS, WIDTH = 64, 8, 32


class Network(nn.Module):
    """Noise prediction from latents, a timestep and a prompt."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(CHANNELS, WIDTH), nn.Linear(WIDTH, CHANNELS)
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            parameter.requires_grad_(False).copy_(torch.randn(parameter.shape, generator=generator) / 4)

    def forward(self, sample: Tensor, timestep: float, prompt: Tensor) -> Tensor:
        out: Tensor = self.out(torch.tanh(self.into(sample) + prompt + timestep))
        return out


def weights(scale: float) -> tuple[float, float]:
    """Of the branches with and without the prompt: their sum is ``uncond + scale * (cond - uncond)``."""
    return scale, 1 - scale


class Pipeline:
    """Runs on two ranks, which draw the same latents from one seed; or in one process."""

    def __init__(self, network: Callable[[Tensor, float, Tensor], Tensor], parallel: bool) -> None:
        self.network, self.parallel = network, parallel

    def weighted(self, i: int, scale: float) -> tuple[float, float]:
        """The weights of step ``i``."""
        return weights(scale)

    def __call__(
        self,
        latents: Tensor,
        prompts: tuple[Tensor, Tensor],
        sigmas: Tensor,
        scale: float,
        callback_on_step_end: Callable[[int, Tensor], None],
    ) -> Tensor:
        for i, t in enumerate(sigmas[:-1].tolist()):
            of = self.weighted(i, scale)
            if self.parallel:
                rank = dist.get_rank()
                prediction = of[rank] * self.network(latents, t, prompts[rank])
                dist.all_reduce(prediction)
            else:
                prediction = of[0] * self.network(latents, t, prompts[0]) + of[1] * self.network(latents, t, prompts[1])
            latents = latents + prediction * (sigmas[i + 1] - sigmas[i])
            callback_on_step_end(i, latents)
        return latents
