"""Contexts: the frozen conditioning of each branch, made by a real prefill.

As in Bagel's ``inferencer.py``: ``gen`` reads the system text, the condition images, the prompt and the thought;
``text`` reads what comes before the prompt; ``img`` reads the system text and the prompt. So without images and
thought ``img`` equals ``gen``, bit for bit. A condition image is read twice: as latents, and as the tokens that the
image encoder makes of it. The encoder is not part of this package, so its tokens come with the image or are left out.

Where the user gives nothing, prompt and image are seeded, and there is an image only with image guidance.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from verify.bagel.conditioning import ConditionImage, Conditioning
from verify.bagel.model import BagelModel, Context, latent_places
from verify.bagel.weights import seeded_uniform
from verify.request import DenoiseRequest

_PROMPT, _CONDITION = 0x70726F6D, 0x636F6E64


def empty_context(model: BagelModel) -> Context:
    """No conditioning: an empty cache at position 0."""
    c = model.config
    nothing = torch.empty(c.layers, c.kv_heads, 0, c.head_dim, dtype=model.dtype, device=model.device)
    return Context(nothing, nothing.clone(), 0)


def prefill_text(model: BagelModel, context: Context, tokens: Int[Tensor, " n"]) -> Context:
    """``context`` followed by text: understanding expert, causal, one rope position a token."""
    rows, count = context.keys.shape[2], len(tokens)
    positions = torch.arange(context.position, context.position + count, device=model.device)
    causal = torch.ones(count, rows + count, dtype=torch.bool, device=model.device).tril(rows)
    _, keys, values = model.decode([model.embed_tokens[tokens]], positions, context, causal)
    return _extended(context, keys, values, count)


def prefill_image(
    model: BagelModel, context: Context, latents: Float[Tensor, "n channels"], grid: tuple[int, int]
) -> Context:
    """``context`` followed by an image at t = 0: generation expert between markers, no mask, one position for all."""
    position = torch.full((1,), context.position, device=model.device)
    now = model.time_embedder(torch.zeros(1, device=model.device, dtype=model.exact_dtype))
    places = latent_places(grid, model.config.latent_side, model.device)
    streams = [model.markers(), model.embed_latents(latents, now, places)]
    _, keys, values = model.decode(streams, position, context)
    return _extended(context, keys, values, 1)


def prefill_vit(model: BagelModel, context: Context, tokens: Float[Tensor, "n hidden"]) -> Context:
    """``context`` followed by an image encoder's tokens: understanding expert, no mask, one position for all."""
    position = torch.full((1,), context.position, device=model.device)
    start, end = model.markers()[:1], model.markers()[1:]
    _, keys, values = model.decode([torch.cat([start, tokens.to(start), end])], position, context)
    return _extended(context, keys, values, 1)


def _extended(context: Context, keys: list[Tensor], values: list[Tensor], positions: int) -> Context:
    return Context(
        torch.cat([context.keys, torch.stack(keys)], 2),
        torch.cat([context.values, torch.stack(values)], 2),
        context.position + positions,
    )


def build_contexts(
    model: BagelModel, request: DenoiseRequest, conditioning: Conditioning | None = None
) -> dict[str, Context]:
    """One frozen context for each branch of the request."""
    given = Conditioning() if conditioning is None else conditioning
    before = empty_context(model)
    if given.system is not None:
        before = prefill_text(model, before, marked(model, given.system))
    prompt = prompt_tokens(model, request.seed) if given.prompt is None else marked(model, given.prompt)
    images = given.images
    if images is None:
        seeded = ConditionImage(condition_latents(model, request), request.grid)
        images = (seeded,) if "img" in request.branches else ()
    shown = before
    for image in images:
        shown = prefill_image(model, shown, image.latents.to(model.device), image.grid)
        if image.vit_tokens is not None:
            shown = prefill_vit(model, shown, image.vit_tokens)
    gen = prefill_text(model, shown, prompt)
    if given.thought is not None:
        gen = prefill_text(model, gen, marked(model, given.thought))
    contexts = {"gen": gen, "text": shown}
    if "img" in request.branches:
        contexts["img"] = prefill_text(model, before, prompt)
    return {branch: contexts[branch] for branch in request.branches}


def marked(model: BagelModel, ids: Sequence[int]) -> Int[Tensor, " n"]:
    """Begin, the text's token ids, end."""
    return torch.tensor([model.config.bos, *ids, model.config.eos], device=model.device)


def prompt_tokens(model: BagelModel, seed: int) -> Int[Tensor, " n"]:
    """Begin, the request's prompt (seeded token ids that are no markers), end."""
    c = model.config
    ordinary = min(c.bos, c.eos, c.image_start, c.image_end)
    ((_, drawn),) = seeded_uniform(c.prompt_tokens, seed ^ _PROMPT, model.device)
    ids = ((drawn + 1) / 2 * ordinary).long()
    ends = torch.tensor([c.bos, c.eos], device=model.device)
    return torch.cat([ends[:1], ids, ends[1:]])


def condition_latents(model: BagelModel, request: DenoiseRequest) -> Float[Tensor, "tokens channels"]:
    """Latents of the condition image, float32, of the requested image's size, spread like encoded images."""
    shape = request.tokens, model.config.latent_channels
    ((_, drawn),) = seeded_uniform(shape[0] * shape[1], request.seed ^ _CONDITION, model.device)
    return (drawn * 3**0.5).view(shape)
