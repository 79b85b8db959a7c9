"""Upstream's step execution of Bagel: one step of a batch at a time, as its runner calls it, with one request.

Its calls are led through the suite's as those of ``generate_image`` are. ``x_t`` after a step is the latent in the
request's state: that is what the next batch is gathered from, and what is decoded in the end.
"""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from verify.errors import Unjudged
from verify.protocols import Group, Observe
from verify.request import DenoiseRequest
from verify.targets.vllm_omni.contexts import BRANCHES
from verify.targets.vllm_omni.loops import led_through, replaced
from verify.targets.vllm_omni.world import parallel_state


def stepwise(
    denoiser: Any,
    request: DenoiseRequest,
    x_0: Float[Tensor, "tokens channels"],
    group: Group,
    observe: Observe,
    mended: bool = False,
) -> Float[Tensor, "tokens channels"]:
    """``DiffusionModelRunner``'s calls for a request, in its order: gather, ``denoise_step``, ``step_scheduler``.

    ``mended``: what the first ``denoise_step`` received into the batch is put into the request's state too, which
    upstream leaves out.

    Raises:
        Unjudged: this release has no step execution of Bagel.
    """
    worker = _worker()
    model, step = denoiser.model, 0
    coordinator = parallel_state().get_cfg_group()
    of_caches: dict[int, str] = {}
    dispatch = model.predict_noise_with_multi_branch_cfg

    def dispatched(**call: Any) -> Any:
        # Caches are merged anew for each batch, so that only their order tells whose they are.
        caches = (branch["past_key_values"] for branch in call["branches_kwargs"])
        of_caches.update(zip(map(id, caches), BRANCHES, strict=False))
        return dispatch(**call)

    def forward(**arguments: Any) -> Tensor:
        branch = of_caches[id(arguments["past_key_values"])]
        with denoiser.handed_over(branch, arguments):
            velocity: Tensor = denoiser.velocity(arguments["x_t"], step, branch)
        return velocity

    state = _state(denoiser, x_0, worker)
    parallel = SimpleNamespace(cfg_parallel_size=coordinator.world_size, sequence_parallel_size=1, ulysses_degree=1,
                               ring_degree=1)  # fmt: skip
    with (
        replaced(model, "predict_noise_with_multi_branch_cfg", dispatched),
        replaced(model, "parallel_config", parallel),
        led_through(model, denoiser.version, coordinator, forward, group.all_gather, group.broadcast),
        denoiser.autocast(),
    ):
        pipeline, batch = _pipeline(model, x_0), None
        while not state.denoise_completed:
            batch = worker.InputBatch.make_batch([state], cached_batch=batch)
            velocity = pipeline.denoise_step(batch, states=[state])
            if mended and step == 0:
                worker.scatter_latents([state], batch)
            pipeline.step_scheduler(state, velocity)
            batch.latents.copy_(state.latents)
            worker.scatter_latents([state], batch)
            observe(step, state.latents)
            step += 1
    final: Tensor = state.latents
    return final


def _worker() -> SimpleNamespace:
    """Upstream's batch and request state.

    Raises:
        Unjudged: this release has none for Bagel.
    """
    try:
        batch = importlib.import_module("vllm_omni.diffusion.worker.input_batch")
        utils = importlib.import_module("vllm_omni.diffusion.worker.utils")
        found = SimpleNamespace(
            InputBatch=batch.InputBatch, scatter_latents=batch.scatter_latents, StepRequestState=utils.StepRequestState
        )
        if not hasattr(
            importlib.import_module("vllm_omni.diffusion.models.bagel.pipeline_bagel").BagelPipeline, "denoise_step"
        ):
            raise AttributeError("BagelPipeline.denoise_step")
    except (ImportError, AttributeError) as error:
        raise Unjudged(
            f"this release of vllm-omni has no step execution of Bagel ({error}): nothing to judge"
        ) from error
    return found


def _pipeline(model: Any, x_0: Tensor) -> Any:
    """Upstream's pipeline as a shell around the model."""
    made = importlib.import_module("vllm_omni.diffusion.models.bagel.pipeline_bagel").BagelPipeline
    pipeline = made.__new__(made)
    nn.Module.__init__(pipeline)
    pipeline.bagel, pipeline.language_model = model, model.language_model
    pipeline.device, pipeline.od_config = x_0.device, SimpleNamespace(dtype=next(model.parameters()).dtype)
    pipeline.scheduler, pipeline.scheduler_kwargs = None, {}
    return pipeline


def _state(denoiser: Any, x_0: Tensor, worker: SimpleNamespace) -> Any:
    """The request's state as ``BagelPipeline.prepare_encode`` fills it, with the contexts of this request."""
    r, model = denoiser.request, denoiser.model
    sampling = SimpleNamespace(return_trajectory_latents=False, generator=None, seed=None)
    state = worker.StepRequestState(request_id="the request", sampling=sampling, prompt="")
    state.latents, state.step_index, state.scheduler = x_0, 0, None
    state.do_true_cfg = r.cfg_text_scale > 1.0
    state.timesteps, dts = model.prepare_denoise_schedule(x_0, r.num_timesteps, r.timestep_shift)
    named = ("cfg_text_scale", "cfg_img_scale", "cfg_interval", "cfg_renorm_type", "cfg_renorm_min")
    state.extra.update(
        {
            "bagel_generation_input": {n: v for n, v in denoiser.shared.items() if n != "packed_init_noises"},
            "bagel_gen_params": SimpleNamespace(**{name: getattr(r, name) for name in named}),
            "bagel_dts": dts,
            "bagel_scheduler_kwargs": {},
            **{f"bagel_cfg_{b}_packed_position_ids": denoiser.own[b]["cfg_packed_position_ids"] for b in BRANCHES[1:]},
            **{
                f"bagel_{'' if b == 'gen' else 'cfg_'}{b}_context": {"past_key_values": context.past_key_values}
                for b, context in denoiser.contexts.items()
            },
        }
    )
    return state
