"""Each branch's context, prefilled by upstream's own code in the order of its pipeline's calls."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, MutableMapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from verify.bagel.config import BagelConfig
from verify.targets.vllm_omni.model import LATENT_PATCH

BRANCHES = ("gen", "text", "img")


@dataclass
class UpstreamContext:
    """What upstream's pipeline keeps for a branch, under its own names.

    Attributes:
        past_key_values: a ``NaiveCache``: for each layer keys and values ``(rows, kv_heads, channels)`` or None.
        kv_lens: rows, one image.
        ropes: the next rope position, one image.
    """

    past_key_values: Any
    kv_lens: list[int] = field(default_factory=lambda: [0])
    ropes: list[int] = field(default_factory=lambda: [0])


class CacheView(MutableMapping[str, Tensor]):
    """A cache's tensors as they are at the moment of asking; a layer without any shows an empty one."""

    def __init__(self, cache: Any) -> None:
        self._caches = {"keys": cache.key_cache, "values": cache.value_cache}
        self._nothing = torch.empty(0)

    def __getitem__(self, name: str) -> Tensor:
        cache, layer = self._place(name)
        tensor = cache[layer]
        return self._nothing if tensor is None else tensor

    def __setitem__(self, name: str, tensor: Tensor) -> None:
        cache, layer = self._place(name)
        cache[layer] = None if tensor is self._nothing else tensor

    def __delitem__(self, name: str) -> None:
        raise KeyError(f"{name} cannot be taken out of a cache")

    def __iter__(self) -> Iterator[str]:
        return (f"{what}, layer {layer}" for what, cache in self._caches.items() for layer in cache)

    def __len__(self) -> int:
        return sum(map(len, self._caches.values()))

    def _place(self, name: str) -> tuple[dict[int, Tensor | None], int]:
        what, _, layer = name.partition(", layer ")
        return self._caches[what], int(layer)


class Prefill:
    """Makes contexts. Stand-ins: a tokenizer that knows one prompt, a VAE that encodes one image."""

    def __init__(self, model: Any, config: BagelConfig, device: torch.device) -> None:
        self._model, self._config, self._device = model, config, device
        self.marker_ids = {
            "bos_token_id": config.bos,
            "eos_token_id": config.eos,
            "start_of_image": config.image_start,
            "end_of_image": config.image_end,
        }

    def contexts(
        self,
        prompt: Int[Tensor, " n"],
        image: Float[Tensor, "tokens channels"] | None,
        grid: tuple[int, int],
        empty_prompt_prefills: bool,
    ) -> dict[str, UpstreamContext]:
        """As ``BagelPipeline.forward``: ``gen`` has image and prompt, ``text`` lacks the prompt, ``img`` the image.

        Args:
            prompt: token ids between begin and end.
            image: latent tokens of the condition image, if there is one.
            grid: rows and columns of the image's tokens.
            empty_prompt_prefills: whether the text branch prefills an empty negative prompt.
        """
        gen, text, img = self._empty(), self._empty(), self._empty()
        if image is not None:
            self._add_image(gen, image, grid)
            text = deepcopy(gen)
        self._add_text(gen, prompt)
        if empty_prompt_prefills:
            self._add_text(text, prompt[:0])
        self._add_text(img, prompt)
        return dict(zip(BRANCHES, (gen, text, img), strict=True))

    def _empty(self) -> UpstreamContext:
        transformer = importlib.import_module("vllm_omni.diffusion.models.bagel.bagel_transformer")
        return UpstreamContext(transformer.NaiveCache(self._config.layers))

    def _add_text(self, context: UpstreamContext, prompt: Int[Tensor, " n"]) -> None:
        inputs, lens, ropes = self._model.prepare_prompts(
            context.kv_lens, context.ropes, ["the prompt"], _Tokenizer(prompt.tolist()), self.marker_ids
        )
        update = self._model.forward_cache_update_text
        context.past_key_values = update(context.past_key_values, **placed(inputs, self._device))
        context.kv_lens, context.ropes = lens, ropes

    def _add_image(self, context: UpstreamContext, latents: Float[Tensor, "n channels"], grid: tuple[int, int]) -> None:
        pixels = torch.zeros(3, *(side * LATENT_PATCH * 8 for side in grid))
        inputs, lens, ropes = self._model.prepare_vae_images(
            context.kv_lens, context.ropes, [pixels], lambda image: image, self.marker_ids
        )
        vae = _Vae(latents.to(self._device), grid)
        update = self._model.forward_cache_update_vae
        context.past_key_values = update(vae, context.past_key_values, **placed(inputs, self._device))
        context.kv_lens, context.ropes = lens, ropes


class _Tokenizer:
    def __init__(self, ids: list[int]) -> None:
        self._ids = ids

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return list(self._ids)


class _Vae:
    """Encodes whatever image to the latents it was made with, laid out as a VAE's: ``(1, z, rows, columns)``."""

    def __init__(self, tokens: Float[Tensor, "tokens channels"], grid: tuple[int, int]) -> None:
        patches = tokens.unflatten(0, grid).unflatten(-1, (LATENT_PATCH, LATENT_PATCH, -1))
        rows, columns = (side * LATENT_PATCH for side in grid)
        self._latents = torch.einsum("hwpqc->chpwq", patches).reshape(1, -1, rows, columns)

    def encode(self, images: Tensor) -> Float[Tensor, "1 z rows columns"]:
        return self._latents


def placed(inputs: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Upstream prepares inputs on the CPU, and its pipeline moves them."""
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in inputs.items()}
