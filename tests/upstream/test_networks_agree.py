"""With the same weights, upstream's network and the suite's compute the same velocity, within a derived bound.

Both run in float32 on the published-layout fixture. The oracle gives the float64 value and, for each element, what
float32 arithmetic can be off by in the operations as the suite writes them, but for one chance in a million. Upstream
writes them otherwise (products fused or split, a norm's gain as an operation of its own, cosines from a table), but in
none of them with more than twice as many roundings, and to first order the bound is linear in what one rounding does:
upstream stays within twice the bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
import upstream_tasks
from network_oracle.model import Bagel, Past
from network_oracle.rounding import LIKELY, Rounding, Tracked
from torch import Tensor

from verify.bagel.checkpoint import load_model
from verify.bagel.context import condition_latents, prefill_text, prompt_tokens
from verify.bagel.denoiser import BagelDenoiser, initial_noise
from verify.oracle.formats import format_of
from verify.ranks.plan import place
from verify.request import DenoiseRequest
from verify.runner.run import pool_for

CHECKPOINT = Path(__file__).parents[2] / "fixtures" / "tiny_checkpoint"
STEPS = (0, 20, 45)
REQUESTS = {
    2: DenoiseRequest(height=64, width=96),
    3: DenoiseRequest(height=64, width=96, cfg_img_scale=1.5, cfg_renorm_type="text_channel"),
}


@dataclass(frozen=True)
class Velocity:
    """One branch's velocity at the request's noise and one time, computed three times."""

    upstream: Tensor
    ours: Tensor
    exact: Tracked

    def off(self, computed: Tensor) -> float:
        """The greatest error in units of its bound."""
        return float((np.abs(computed.double().numpy() - self.exact.value) / self.exact.limit()).max())


@cache
def velocities(world_size: int) -> dict[tuple[int, str], Velocity]:
    request = REQUESTS[world_size]
    pool = pool_for(place(world_size, "cpu").spec)
    upstream, times, prefills = pool.run(
        upstream_tasks.velocities, request, str(CHECKPOINT), STEPS, name="velocities", timeout=300.0
    )[0]
    # Ours at upstream's times: 0.22.0 has others.
    dts = torch.ones(len(times))
    request = request.resolved(type(request.schedule)(tuple(times), dts, (True,) * len(times)))
    model = load_model(CHECKPOINT, torch.float32, torch.device("cpu"))
    ends = torch.tensor([model.config.bos, model.config.eos])
    x_0 = initial_noise(request, model.config.latent_channels)
    found = {}
    with torch.no_grad():
        ours = BagelDenoiser(model, request)
        if prefills:
            ours.contexts = {**ours.contexts, "text": prefill_text(model, ours.contexts["text"], ends)}
        pasts, oracle = _oracle(request, ends.tolist() if prefills else [])
        for (step, branch), velocity in upstream.items():
            latents = oracle.arithmetic.constant(x_0.double().numpy())
            exact = oracle.velocity(pasts[branch], latents, times[step], request.grid)
            found[step, branch] = Velocity(velocity, ours.velocity(x_0, step, branch), exact)
    return found


def _oracle(request: DenoiseRequest, no_prompt: list[int]) -> tuple[dict[str, Past[Tracked]], Bagel[Tracked]]:
    """The network in float64 with error bounds, and what each branch is conditioned on."""
    model = load_model(CHECKPOINT, torch.float32, torch.device("cpu"))
    form = format_of("float32")
    weights = {name: value.double().numpy() for name, value in model.state_dict().items()}
    oracle = Bagel(model.config, weights, Rounding(form, form, LIKELY))
    prompt = prompt_tokens(model, request.seed).tolist()
    image: Past[Tracked] = Past()
    if "img" in request.branches:
        latents = condition_latents(model, request).double().numpy()
        image = oracle.read_image(image, oracle.arithmetic.constant(latents), request.grid)
    text = oracle.read_text(image, no_prompt) if no_prompt else image
    return {"gen": oracle.read_text(image, prompt), "text": text, "img": oracle.read_text(Past(), prompt)}, oracle


@pytest.mark.parametrize("world_size", [2, 3])
def test_velocities_agree(world_size: int) -> None:
    found = velocities(world_size)
    assert len(found) == len(STEPS) * world_size
    for (step, branch), velocity in found.items():
        ours, upstream = velocity.off(velocity.ours), velocity.off(velocity.upstream)
        bound = np.linalg.norm(velocity.exact.limit()) / np.linalg.norm(velocity.exact.value)
        print(
            f"step {step}, {branch}: bound {bound:.1e} of the velocity; suite {ours:.3f}, upstream {upstream:.3f} of it"
        )
        assert ours <= 1.0
        assert upstream <= 2.0


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_bound_tells_branches_and_steps_apart(world_size: int) -> None:
    """What the bound is for: a velocity of another branch or time is far outside it."""
    found = velocities(world_size)
    for a, b in combinations(found.values(), 2):
        assert a.off(b.upstream) > 2.0
        assert b.off(a.ours) > 2.0
