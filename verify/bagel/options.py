"""What only Bagel is asked: which of a checkpoint's weights, what the image is conditioned on, how it is evaluated."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

SEEDED, NONE = "seeded", "none"


@dataclass(frozen=True)
class BagelOptions:
    """All of it may be left out.

    Attributes:
        weights: a checkpoint's file of weights, or index of such files, where its folder holds several.
        system: text in front of everything; every branch reads it.
        prompt: text; a prompt of seeded token ids if neither this nor ``prompt_ids`` is given.
        prompt_ids: token ids of the prompt, without the markers around it.
        think: text that the model is taken to have thought before it draws; only ``gen`` reads it.
        condition: safetensors files, one a condition image, in front of the prompt; or ``none``; or ``seeded``: an
            image of seeded latents where the request evaluates the ``img`` branch. Left out: ``none`` with a prompt of
            the user's own, else ``seeded``.
        cuda_graph: whether forward passes are replayed from CUDA graphs; left out: on a GPU at the size of ``7b``.
    """

    weights: str | None = None
    system: str | None = None
    prompt: str | None = None
    prompt_ids: tuple[int, ...] | None = None
    think: str | None = None
    condition: tuple[str, ...] | None = None
    cuda_graph: bool | None = None

    def given(self) -> dict[str, Any]:
        """The fields that are not left out, as plain JSON values."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        left_out = BagelOptions.__dataclass_fields__
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
            if value != left_out[name].default
        }
