"""Step execution of Bagel shares no noise: ``python step_execution.py`` (vllm-omni 0.30.0, two gloo ranks on a CPU).

``denoise_step`` broadcasts the batch's latents, which are a copy; ``step_scheduler`` advances the request's. The
network is a stand-in here (a ``Bagel`` whose single-branch forward is one line), everything else is upstream's.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from common import everyone, launch
from torch import Tensor, nn


def main(rank: int, ranks: int) -> None:
    from vllm_omni.diffusion.models.bagel.bagel_transformer import Bagel, NaiveCache
    from vllm_omni.diffusion.models.bagel.pipeline_bagel import BagelPipeline
    from vllm_omni.diffusion.worker.input_batch import InputBatch, scatter_latents
    from vllm_omni.diffusion.worker.utils import StepRequestState

    class Tiny(Bagel):
        parallel_config = SimpleNamespace(
            cfg_parallel_size=ranks, sequence_parallel_size=1, ulysses_degree=1, ring_degree=1
        )

        def __init__(self) -> None:
            nn.Module.__init__(self)

        def forward_single_branch(self, x_t: Tensor, packed_position_ids: Tensor, **_: Any) -> Tensor:
            return torch.tanh(x_t + packed_position_ids[0])

    pipeline = BagelPipeline.__new__(BagelPipeline)
    nn.Module.__init__(pipeline)
    pipeline.bagel, pipeline.device = Tiny(), torch.device("cpu")
    pipeline.od_config = SimpleNamespace(dtype=torch.float32)

    sampling = SimpleNamespace(return_trajectory_latents=False, generator=None, seed=None)
    state = StepRequestState(request_id="r", sampling=sampling, prompt="")
    state.latents = torch.randn(6, 4, generator=torch.Generator().manual_seed(rank))  # Noise of its own.
    state.timesteps, dts = pipeline.bagel.prepare_denoise_schedule(state.latents, 5, 3.0)
    state.step_index, state.scheduler, state.do_true_cfg = 0, None, True
    ids = torch.zeros(8, dtype=torch.long)
    inputs = {"packed_text_ids": ids[:2], "packed_text_indexes": ids[:2], "packed_vae_position_ids": ids[:6],
              "packed_vae_token_indexes": ids[:6], "packed_position_ids": ids,
              "packed_seqlens": torch.tensor([8])}  # fmt: skip
    guidance = SimpleNamespace(
        cfg_text_scale=4.0, cfg_img_scale=1.0, cfg_interval=(0.4, 1.0), cfg_renorm_type="global", cfg_renorm_min=0.0
    )
    contexts = {f"bagel_{name}_context": {"past_key_values": NaiveCache(1)} for name in ("gen", "cfg_text", "cfg_img")}
    state.extra.update(
        contexts,
        bagel_generation_input=inputs,
        bagel_gen_params=guidance,
        bagel_dts=dts,
        bagel_scheduler_kwargs={},
        bagel_cfg_text_packed_position_ids=ids + 1,
        bagel_cfg_img_packed_position_ids=ids + 2,
    )

    batch, step = None, 0
    while not state.denoise_completed:  # As DiffusionModelRunner does.
        batch = InputBatch.make_batch([state], cached_batch=batch)
        velocity = pipeline.denoise_step(batch, states=[state])
        equal_batch = len({x.numpy().tobytes() for x in everyone(batch.latents)}) == 1
        pipeline.step_scheduler(state, velocity)
        batch.latents.copy_(state.latents)
        scatter_latents([state], batch)
        latents = everyone(state.latents)
        gap = (latents[0] - latents[1]).abs().max().item()
        if rank == 0:
            print(f"step {step}: the batch's latents are equal on both ranks: {equal_batch}; "
                  f"the request's differ by up to {gap:.3g}")  # fmt: skip
        step += 1


if __name__ == "__main__":
    launch(main, 2)
