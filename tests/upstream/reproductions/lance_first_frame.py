"""Lance's image-to-video loses its first frame: ``python lance_first_frame.py`` (vllm-omni 0.30.0, a CPU).

``generate_image`` restores the pinned tokens after each step in one process; in parallel it never does. The network is
a stand-in here (a ``LanceBagel`` whose forward is one line), the loop, the mixin and the groups are upstream's.
"""

from __future__ import annotations

from typing import Any

import torch
from common import launch
from torch import Tensor, nn

PINNED = torch.arange(2)


def main(rank: int, ranks: int) -> None:
    from vllm_omni.diffusion.models.bagel.bagel_transformer import NaiveCache
    from vllm_omni.diffusion.models.lance.lance_transformer import LanceBagel

    class Tiny(LanceBagel):
        parallel_config = None

        def __init__(self) -> None:
            nn.Module.__init__(self)

        def forward_single_branch(self, x_t: Tensor, packed_position_ids: Tensor, **_: Any) -> Tensor:
            return torch.tanh(x_t + packed_position_ids[0])

        def forward(self, x_t: Tensor, **_: Any) -> Tensor:  # What one process calls.
            return torch.tanh(x_t)

    ids, noise = torch.zeros(8, dtype=torch.long), torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    frame = noise[PINNED].clone()
    _, trajectory, *_ = Tiny().generate_image(
        packed_text_ids=ids[:2],
        packed_text_indexes=ids[:2],
        packed_init_noises=noise,
        packed_vae_position_ids=ids[:6],
        packed_vae_token_indexes=ids[:6],
        packed_seqlens=torch.tensor([8]),
        packed_position_ids=ids,
        past_key_values=NaiveCache(1),
        num_timesteps=4,
        timestep_shift=3.0,
        cfg_text_scale=4.0,
        cfg_text_packed_position_ids=ids + 1,
        cfg_text_past_key_values=NaiveCache(1),
        return_trajectory_latents=True,
        frame_condition_token_indexes=PINNED,
    )
    if rank == 0:
        gaps = [(x[PINNED] - frame).abs().max().item() for x in trajectory]
        print(f"{ranks} rank(s): the first frame is off by", " ".join(f"{gap:.3g}" for gap in gaps))


if __name__ == "__main__":
    launch(main, 1)
    launch(main, 2)
