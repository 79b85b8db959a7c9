"""An imagined engine: CFG parallelism times sequence parallelism. It knows nothing of this suite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

TOKENS, CHANNELS, WIDTH = 64, 12, 32
# Products are made of blocks of so many rows: a token's bits do not depend on how many are computed with it.
ROWS = 16


class ParallelState:
    """This rank's groups: those who evaluate the same branch, and those who hold the same tokens."""

    def __init__(self, sp_degree: int) -> None:
        rank, world = dist.get_rank(), dist.get_world_size()
        self.cfg_rank, self.sp_rank = divmod(rank, sp_degree)
        self.sp_degree = sp_degree
        sp = [dist.new_group(list(range(first, first + sp_degree))) for first in range(0, world, sp_degree)]
        cfg = [dist.new_group(list(range(shard, world, sp_degree))) for shard in range(sp_degree)]
        self.sp_group, self.cfg_group = sp[self.cfg_rank], cfg[self.sp_rank]

    def shard(self, x: Tensor) -> Tensor:
        """This rank's tokens."""
        return x.chunk(self.sp_degree)[self.sp_rank]

    def all_tokens(self, x: Tensor) -> Tensor:
        """The tokens of all ranks that evaluate this branch."""
        return _gathered(x, self.sp_group)


def _gathered(x: Tensor, group: Any) -> Tensor:
    whole = x.new_empty((x.shape[0] * dist.get_world_size(group), *x.shape[1:]))
    work = dist.all_gather_into_tensor(whole, x.contiguous(), group=group, async_op=True)
    work.wait()
    return whole


class Transformer(nn.Module):
    """Noise prediction from latents, a timestep and a prompt. With a state, keys are gathered from its ranks."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(CHANNELS, 3 * WIDTH), nn.Linear(WIDTH, CHANNELS)
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            parameter.requires_grad_(False).copy_(torch.randn(parameter.shape, generator=generator) / 4)

    def forward(self, sample: Tensor, timestep: float, prompt: Tensor, state: ParallelState | None = None) -> Tensor:
        q, k, v = torch.cat([self.qkv(rows) + prompt + timestep for rows in sample.split(ROWS)]).chunk(3, -1)
        if state is not None:
            k, v = state.all_tokens(k), state.all_tokens(v)
        return torch.cat([self.out(torch.softmax(rows @ k.T / 4, -1) @ v) for rows in q.split(ROWS)])


class Pipeline:
    """Without a state, one process evaluates both branches and holds all tokens."""

    def __init__(self, transformer: Callable[..., Tensor], state: ParallelState | None = None) -> None:
        self.transformer, self.state = transformer, state

    def branches(self, own: Tensor) -> tuple[Tensor, Tensor]:
        """The predictions of both branches, for this rank's tokens."""
        assert self.state is not None
        cond, uncond = _gathered(own, self.state.cfg_group).chunk(2)
        return cond, uncond

    def __call__(
        self,
        latents: Tensor,
        prompts: tuple[Tensor, Tensor],
        sigmas: Tensor,
        guidance_scale: float,
        callback_on_step_end: Callable[[int, Tensor], None],
    ) -> Tensor:
        state = self.state
        if state is not None:
            dist.broadcast(latents, 0)
            latents = state.shard(latents).clone()
        for i, t in enumerate(sigmas[:-1].tolist()):
            if state is not None:
                cond, uncond = self.branches(self.transformer(latents, t, prompts[state.cfg_rank], state))
            else:
                cond, uncond = (self.transformer(latents, t, prompt) for prompt in prompts)
            latents = latents + (uncond + guidance_scale * (cond - uncond)) * (sigmas[i + 1] - sigmas[i])
            callback_on_step_end(i, latents)
        return latents if state is None else state.all_tokens(latents)
