"""The network as a whole: what influences what, that branches differ, that shape annotations hold.

Its numbers are compared with an implementation of their own elsewhere.
"""

from __future__ import annotations

import copy
import importlib
import sys
from functools import cache
from types import SimpleNamespace
from typing import Any

import jaxtyping
import pytest
import torch
from float64_tensors import close, random
from torch import Tensor

import verify.bagel
from verify.bagel.arithmetic import rotation_at
from verify.bagel.config import PRESETS
from verify.bagel.context import prefill_text, prompt_tokens
from verify.bagel.denoiser import BagelDenoiser, initial_noise
from verify.bagel.model import BagelModel, Context, latent_places
from verify.bagel.weights import build_model
from verify.bits import same_bits
from verify.loops.guidance import guide
from verify.request import DenoiseRequest

CPU = torch.device("cpu")
TINY = PRESETS["tiny"].config
REQUESTS = [DenoiseRequest(), DenoiseRequest(cfg_img_scale=1.5)]
KINDS = ["text guidance", "text and image guidance"]
TEXT, IMAGE = (DenoiseRequest(height=64, width=96, cfg_img_scale=scale) for scale in (1.0, 1.5))


@cache
def tiny(dtype: torch.dtype = torch.bfloat16) -> BagelModel:
    return build_model(TINY, dtype, CPU, seed=1)


pytestmark = pytest.mark.usefixtures("no_grad")


# Influence


def velocity(model: BagelModel, request: DenoiseRequest, x_t: Tensor, branch: str = "gen", step: int = 0) -> Tensor:
    return BagelDenoiser(model, request).velocity(x_t, step, branch)


@pytest.mark.parametrize("request_", [TEXT, IMAGE], ids=KINDS)
def test_every_latent_token_influences_every_other(request_: DenoiseRequest) -> None:
    denoiser = BagelDenoiser(tiny(torch.float64), request_)
    x_t = initial_noise(request_, TINY.latent_channels).double()
    for branch in request_.branches:
        before = denoiser.velocity(x_t, 0, branch)
        for token in (0, 11, request_.tokens - 1):
            changed = x_t.clone()
            changed[token] += 1
            after = denoiser.velocity(changed, 0, branch)
            assert (before != after).any(1).all(), (branch, token)


def test_every_cached_row_influences_every_token() -> None:
    denoiser = BagelDenoiser(tiny(torch.float64), IMAGE)
    x_t = initial_noise(IMAGE, TINY.latent_channels).double()
    for branch in IMAGE.branches:
        before = denoiser.velocity(x_t, 0, branch)
        context = denoiser.contexts[branch]
        for layer in range(TINY.layers):
            for row in range(0, context.keys.shape[2], 5):
                other = Context(context.keys.clone(), context.values.clone(), context.position)
                other.values[layer, :, row] += 1
                denoiser.contexts = {branch: other}
                assert (before != denoiser.velocity(x_t, 0, branch)).any(1).all(), (branch, layer, row)
        denoiser = BagelDenoiser(tiny(torch.float64), IMAGE)


def test_only_its_place_in_the_table_tells_a_latent_token_where_it_is() -> None:
    """All tokens of an image share one rope position, so a shuffled image gives shuffled velocities."""
    model = tiny(torch.float64)
    denoiser = BagelDenoiser(model, TEXT)
    x_t = initial_noise(TEXT, TINY.latent_channels).double()
    places = latent_places(TEXT.grid, TINY.latent_side, CPU)
    time = model.time_embedder(torch.ones(1, dtype=torch.float64))
    order = torch.randperm(TEXT.tokens, generator=torch.Generator().manual_seed(0))
    context = denoiser.contexts["gen"]
    straight = model.velocity(x_t, time, places, context)
    assert close(model.velocity(x_t[order], time, places[order], context), straight[order])
    assert not close(model.velocity(x_t[order], time, places, context), straight[order], 1e-3)


def test_only_distances_between_rope_positions_matter() -> None:
    model = tiny(torch.float64)
    x_t = initial_noise(TEXT, TINY.latent_channels).double()
    places = latent_places(TEXT.grid, TINY.latent_side, CPU)
    time = model.time_embedder(torch.ones(1, dtype=torch.float64))
    nothing = torch.empty(TINY.layers, TINY.kv_heads, 0, TINY.head_dim, dtype=torch.float64)
    at_0, at_100 = (prefill_text(model, Context(nothing, nothing, p), prompt_tokens(model, 0)) for p in (0, 100))
    assert (at_0.position, at_100.position) == (14, 114)
    expected = model.velocity(x_t, time, places, at_0)
    assert close(model.velocity(x_t, time, places, at_100), expected, 1e-9)
    elsewhere = Context(at_0.keys, at_0.values, 15)
    assert not close(model.velocity(x_t, time, places, elsewhere), expected, 1e-3)


def test_text_takes_a_position_a_token_and_an_image_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []

    def rotation_seen(positions: Tensor, *arguments: Any) -> Any:
        seen.append(positions.tolist())
        return rotation_at(positions, *arguments)

    monkeypatch.setattr("verify.bagel.model.rotation_at", rotation_seen)
    denoiser = BagelDenoiser(tiny(), IMAGE)
    assert sorted(seen) == [[0], list(range(14)), list(range(1, 15))]
    seen.clear()
    for branch in ("gen", "text", "img"):
        denoiser.velocity(initial_noise(IMAGE, TINY.latent_channels), 0, branch)
    assert seen == [[15], [1], [14]]


def test_every_parameter_matters_but_those_that_nothing_can_see() -> None:
    """Of the last layer's understanding expert only keys and values reach the latents."""
    model = copy.deepcopy(tiny(torch.float64))
    x_t = initial_noise(IMAGE, TINY.latent_channels).double()
    before = velocity(model, IMAGE, x_t)
    unseen = set()
    for name, parameter in model.named_parameters():
        original = parameter.clone()
        # A ramp, because a norm would undo a shift or a scale of some of them.
        parameter.add_(torch.linspace(0.01, 0.02, parameter.numel(), dtype=torch.float64).view_as(parameter))
        if close(velocity(model, IMAGE, x_t), before, 1e-9):
            unseen.add(name)
        parameter.copy_(original)
    last = f"layers.{TINY.layers - 1}.und."
    attention = ("q_proj.weight", "q_proj.bias", "q_norm.weight", "o_proj.weight")
    assert unseen == {"norm.und.weight", f"{last}post_attention_layernorm.weight"} | {
        f"{last}self_attn.{name}" for name in attention
    } | {f"{last}mlp.{name}_proj.weight" for name in ("gate", "up", "down")}


def test_the_step_decides_the_velocity() -> None:
    x_t = initial_noise(TEXT, TINY.latent_channels)
    velocities = [velocity(tiny(), TEXT, x_t, step=step) for step in (0, 1, TEXT.schedule.steps - 1)]
    assert not same_bits(velocities[0], velocities[1])
    assert not same_bits(velocities[1], velocities[2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_velocities_have_the_shape_of_x_t_and_the_dtype_of_the_network(dtype: torch.dtype) -> None:
    x_t = initial_noise(IMAGE, TINY.latent_channels)
    for branch in IMAGE.branches:
        v_t = velocity(tiny(dtype), IMAGE, x_t, branch)
        assert (v_t.shape, v_t.dtype) == (x_t.shape, dtype)
        assert v_t.isfinite().all()


def test_autocast_around_the_loop_leaves_the_network_alone() -> None:
    x_t = initial_noise(TEXT, TINY.latent_channels)
    bare = velocity(tiny(torch.float32), TEXT, x_t)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
        assert same_bits(velocity(tiny(torch.float32), TEXT, x_t), bare)


def test_noise_differs_on_every_rank_and_not_between_calls() -> None:
    noises = [initial_noise(DenoiseRequest(seed=seed), 16, rank) for seed in (0, 1) for rank in (0, 1, 2)]
    assert all(noise.shape == (64, 16) and noise.dtype == torch.float32 for noise in noises)
    assert not any(same_bits(a, b) for i, a in enumerate(noises) for b in noises[:i])
    assert same_bits(noises[0], initial_noise(DenoiseRequest(), 16))
    assert torch.stack(noises).std().item() == pytest.approx(1.0, abs=0.05)


# Contrast


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("scale", [1.0, 1.5], ids=KINDS)
def test_branches_differ_and_nothing_overflows_over_fifty_timesteps(scale: float, seed: int) -> None:
    """Each branch's velocity is at least 20 % away from gen's, at every step: a swapped branch cannot hide."""
    request = DenoiseRequest(cfg_img_scale=scale, seed=seed)
    denoiser = BagelDenoiser(tiny(), request)
    x_t = initial_noise(request, TINY.latent_channels)
    assert request.schedule.steps == 49
    for step, (guided, dt) in enumerate(zip(request.schedule.guided, request.schedule.dts, strict=True)):
        gen, *others = (denoiser.velocity(x_t, step, branch) for branch in request.branches)
        assert len(others) == len(request.branches) - 1
        for other in others:
            assert (gen.double() - other.double()).norm() >= 0.2 * gen.double().norm(), step
        v_t = guide(request, [gen, *others]) if guided else gen
        assert v_t.dtype == torch.bfloat16
        assert v_t.isfinite().all() and 0.1 < v_t.float().square().mean().sqrt() < 10, step
        x_t = x_t - v_t * dt
        assert x_t.dtype == torch.float32
        assert x_t.abs().max() < 100, step


# Annotations


@pytest.fixture(scope="module")
def checked() -> SimpleNamespace:
    """The model's modules once more, with every shape annotation enforced at every call."""
    names = [name for name in sys.modules if name.startswith("verify.bagel.")]
    kept = {name: sys.modules.pop(name) for name in names}
    try:
        with jaxtyping.install_import_hook("verify.bagel", "beartype.beartype"):
            modules = {
                name: importlib.import_module(f"verify.bagel.{name}")
                for name in ("config", "layers", "model", "weights", "context", "denoiser")
            }
    finally:
        for name in [name for name in sys.modules if name.startswith("verify.bagel.")]:
            del sys.modules[name]
        for name, module in kept.items():
            sys.modules[name] = module
            setattr(verify.bagel, name.rpartition(".")[2], module)
    assert modules["model"].BagelModel is not BagelModel
    return SimpleNamespace(**modules)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("request_", REQUESTS, ids=KINDS)
def test_annotations_hold(checked: SimpleNamespace, request_: DenoiseRequest, dtype: torch.dtype) -> None:
    model = checked.weights.build_model(checked.config.PRESETS["tiny"].config, dtype, CPU, 1)
    denoiser = checked.denoiser.BagelDenoiser(model, request_)
    x_t = checked.denoiser.initial_noise(request_, TINY.latent_channels)
    for branch in request_.branches:
        expected = velocity(tiny(dtype), request_, x_t, branch)
        assert same_bits(denoiser.velocity(x_t, 0, branch), expected)


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        (lambda x: x[None], r"f32\[1,64,16\]"),
        (lambda x: x[:, :, None], r"f32\[64,16,1\]"),
        (lambda x: x.long(), r"i64\[64,16\]"),
        (lambda x: x.numpy(), r"f32\[64,16\]\(numpy\)"),
    ],
    ids=["a batch", "a channel too many", "integers", "no tensor"],
)
def test_annotations_are_enforced(checked: SimpleNamespace, change: object, seen: str) -> None:
    model = checked.weights.build_model(checked.config.PRESETS["tiny"].config, torch.bfloat16, CPU, 1)
    denoiser = checked.denoiser.BagelDenoiser(model, DenoiseRequest())
    x_t = initial_noise(DenoiseRequest(), TINY.latent_channels)
    assert callable(change)
    with pytest.raises(jaxtyping.TypeCheckError, match=seen):
        denoiser.velocity(change(x_t), 0, "gen")
    with pytest.raises(jaxtyping.TypeCheckError):
        checked.layers.attend(random(4, 5, 16), random(2, 7, 16), random(2, 6, 16), None)
