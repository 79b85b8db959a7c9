"""Contexts: what each branch is conditioned on, and that text is causal while an image is not."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch

from verify.bagel.config import PRESETS
from verify.bagel.context import (
    build_contexts,
    condition_latents,
    empty_context,
    prefill_image,
    prefill_text,
    prompt_tokens,
)
from verify.bagel.denoiser import BagelDenoiser
from verify.bagel.model import BagelModel, Context
from verify.bagel.weights import build_model
from verify.bits import same_bits
from verify.errors import BadInput
from verify.request import DenoiseRequest

CPU = torch.device("cpu")
TINY = PRESETS["tiny"].config
TEXT = DenoiseRequest(height=64, width=96)
IMAGE = DenoiseRequest(height=64, width=96, cfg_img_scale=1.5)
PROMPT = TINY.prompt_tokens + 2


@cache
def tiny(dtype: torch.dtype = torch.bfloat16) -> BagelModel:
    return build_model(TINY, dtype, CPU, seed=1)


pytestmark = pytest.mark.usefixtures("no_grad")


def rows(context: Context) -> int:
    """Cached rows, having seen that keys and values have the shape they must have."""
    assert (
        context.keys.shape == context.values.shape == (TINY.layers, TINY.kv_heads, context.keys.shape[2], TINY.head_dim)
    )
    return context.keys.shape[2]


def same_rows(a: Context, b: Context, first: int, last: int) -> bool:
    return all(same_bits(x[:, :, first:last], y[:, :, first:last]) for x, y in ((a.keys, b.keys), (a.values, b.values)))


def perturbed(model: BagelModel, part: str) -> BagelModel:
    """A copy whose parameters with ``part`` in their name are moved."""
    other = copy.deepcopy(model)
    moved = [parameter.add_(0.125) for name, parameter in other.named_parameters() if part in name]
    assert moved
    return other


def test_without_image_guidance_gen_is_the_prompt_and_text_is_nothing() -> None:
    contexts = build_contexts(tiny(), TEXT)
    assert list(contexts) == ["gen", "text"]
    assert {branch: (rows(c), c.position) for branch, c in contexts.items()} == {
        "gen": (PROMPT, PROMPT),
        "text": (0, 0),
    }


def test_with_image_guidance_text_lacks_the_prompt_and_img_the_image() -> None:
    contexts = build_contexts(tiny(), IMAGE)
    image = IMAGE.tokens + 2
    assert list(contexts) == ["gen", "text", "img"]
    assert {branch: (rows(c), c.position) for branch, c in contexts.items()} == {
        "gen": (image + PROMPT, 1 + PROMPT),
        "text": (image, 1),
        "img": (PROMPT, PROMPT),
    }
    assert same_rows(contexts["gen"], contexts["text"], 0, image)
    alone = build_contexts(tiny(), TEXT)["gen"]
    assert same_rows(contexts["img"], alone, 0, PROMPT)
    # The prompt after an image is not the prompt alone: it attends to the image, at other positions.
    assert not same_bits(contexts["gen"].keys[:, :, image:], alone.keys)


def test_without_guidance_there_is_only_gen() -> None:
    assert list(build_contexts(tiny(), DenoiseRequest(cfg_text_scale=1.0))) == ["gen"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_contexts_have_the_dtype_of_the_network_and_are_finite(dtype: torch.dtype) -> None:
    for context in build_contexts(tiny(dtype), IMAGE).values():
        assert context.keys.dtype == context.values.dtype == dtype
        assert context.keys.isfinite().all() and context.values.isfinite().all()
        assert not context.keys.requires_grad


def test_contexts_follow_the_seed_and_nothing_else() -> None:
    first, again, other = (build_contexts(tiny(), DenoiseRequest(cfg_img_scale=1.5, seed=s)) for s in (1, 1, 2))
    for branch in first:
        assert same_bits(first[branch].keys, again[branch].keys) and same_bits(
            first[branch].values, again[branch].values
        )
        assert not same_bits(first[branch].keys, other[branch].keys)


def test_the_prompt_is_marked_and_holds_no_markers() -> None:
    markers = {TINY.bos, TINY.eos, TINY.image_start, TINY.image_end}
    for seed in range(50):
        first, *words, last = prompt_tokens(tiny(), seed).tolist()
        assert (first, last, len(words)) == (TINY.bos, TINY.eos, TINY.prompt_tokens)
        assert all(0 <= word < TINY.vocab for word in words)
        assert not markers & set(words)


def test_condition_latents_are_spread_like_noise() -> None:
    latents = condition_latents(tiny(), DenoiseRequest(cfg_img_scale=1.5))
    assert latents.dtype == torch.float32
    assert latents.shape == (64, TINY.latent_channels)
    assert latents.std().item() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("after_image", [False, True])
def test_text_is_causal(after_image: bool) -> None:
    model = tiny()
    before = build_contexts(model, IMAGE)["text"] if after_image else empty_context(model)
    start = rows(before)
    tokens = prompt_tokens(model, 0)
    context = prefill_text(model, before, tokens)
    for place in (0, 5, PROMPT - 1):
        changed = tokens.clone()
        changed[place] = (tokens[place] + 1) % TINY.vocab
        other = prefill_text(model, before, changed)
        assert same_rows(context, other, 0, start + place)
        for row in range(start + place, start + PROMPT):
            # In the first layer only the changed token's own row differs; from the second on, every later row does.
            assert not same_bits(context.keys[1, :, row], other.keys[1, :, row])
            assert same_bits(context.keys[0, :, row], other.keys[0, :, row]) == (row != start + place)


def test_text_in_two_parts_is_text_in_one() -> None:
    model = tiny(torch.float64)
    tokens = prompt_tokens(model, 0)
    whole = prefill_text(model, empty_context(model), tokens)
    parts = prefill_text(model, prefill_text(model, empty_context(model), tokens[:5]), tokens[5:])
    assert parts.position == whole.position
    for a, b in ((whole.keys, parts.keys), (whole.values, parts.values)):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_an_image_is_not_causal() -> None:
    """In the second layer every row of the image, markers included, has seen its last token."""
    model = tiny(torch.float64)
    latents = condition_latents(model, IMAGE)
    changed = latents.clone()
    changed[-1] += 1
    first, second = (prefill_image(model, empty_context(model), x, IMAGE.grid) for x in (latents, changed))
    for row in range(rows(first)):
        assert not same_bits(first.keys[1, :, row], second.keys[1, :, row])


def test_an_image_takes_one_position() -> None:
    """Turning every key of the first layer back by one shared position leaves the latents' own projections."""
    model = tiny(torch.float64)
    latents = condition_latents(model, IMAGE)
    at_0 = prefill_image(model, empty_context(model), latents, IMAGE.grid)
    nothing = empty_context(model)
    at_9 = prefill_image(model, Context(nothing.keys, nothing.values, 9), latents, IMAGE.grid)
    assert (at_0.position, at_9.position) == (1, 10)
    # Values carry no position, and within one image no key turns against another: only the frame of keys turns.
    torch.testing.assert_close(at_0.values, at_9.values, rtol=0, atol=1e-12)
    torch.testing.assert_close(at_0.keys.norm(dim=-1), at_9.keys.norm(dim=-1), rtol=0, atol=1e-12)
    assert not same_bits(at_0.keys, at_9.keys)


def test_text_goes_through_the_understanding_expert() -> None:
    model = tiny()
    tokens = prompt_tokens(model, 0)
    context = prefill_text(model, empty_context(model), tokens)
    for part, unchanged in ((".gen.", True), (".und.", False), ("embed_tokens", False), ("norm.und", True)):
        other = prefill_text(perturbed(model, part), empty_context(model), tokens)
        assert same_rows(context, other, 0, PROMPT) == unchanged, part


def test_markers_go_through_the_understanding_expert_and_latents_through_the_other() -> None:
    """In the first layer, before attention has mixed them."""
    model = tiny()
    latents = condition_latents(model, IMAGE)
    context = prefill_image(model, empty_context(model), latents, IMAGE.grid)
    for part, markers_same, latents_same in ((".gen.", True, False), (".und.", False, True)):
        other = prefill_image(perturbed(model, part), empty_context(model), latents, IMAGE.grid)
        for kept, moved in ((context.keys[0], other.keys[0]), (context.values[0], other.values[0])):
            same = [same_bits(kept[:, row], moved[:, row]) for row in range(rows(context))]
            assert same == [markers_same, *[latents_same] * IMAGE.tokens, markers_same], part


def test_evaluating_a_velocity_writes_into_no_cache() -> None:
    denoiser = BagelDenoiser(tiny(), IMAGE)
    before = copy.deepcopy(denoiser.contexts)
    x_t = torch.ones(IMAGE.tokens, TINY.latent_channels)
    for branch in IMAGE.branches:
        denoiser.velocity(x_t, 0, branch)
    for branch, context in denoiser.contexts.items():
        assert same_rows(context, before[branch], 0, rows(context))
    assert same_bits(x_t, torch.ones_like(x_t))


@pytest.mark.parametrize(("height", "width"), [(272, 16), (16, 272), (512, 512)])
def test_an_image_larger_than_the_position_table_is_refused(height: int, width: int) -> None:
    assert TINY.latent_side * 16 == 256
    BagelDenoiser(tiny(), DenoiseRequest(height=min(height, 256), width=min(width, 256)))
    with pytest.raises(BadInput, match="at most 256 pixels a side"):
        BagelDenoiser(tiny(), DenoiseRequest(height=height, width=width))
