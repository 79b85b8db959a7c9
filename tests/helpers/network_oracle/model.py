"""Bagel's denoiser from contexts to velocities, as mathematics.

Written from the papers (BAGEL, arXiv 2505.14683; Qwen2.5, arXiv 2412.15115) over an arithmetic. With
:class:`~network_oracle.arithmetic.Float64Network` the formulas give plain float64. With
:class:`~network_oracle.rounding.Rounding` the same formulas carry an error bound. The two kinds of
token stand in the order in which the paper packs them, and each is sent through its own expert.

Legend: N rows of a segment, T rows of the pass, R rows of the past, H hidden, A query heads, K key/value heads, D head
channels, C latent channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol

import numpy as np
from jaxtyping import Bool, Float64, Int

from network_oracle.arithmetic import Arithmetic
from verify.oracle.combine import Array, Number

TIME_FEATURES = 256
UNDERSTANDING, GENERATION = "und", "gen"


class Config(Protocol):
    """What must be known of a model's geometry."""

    @property
    def layers(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def latent_side(self) -> int: ...
    @property
    def image_start(self) -> int: ...
    @property
    def image_end(self) -> int: ...
    @property
    def rope_theta(self) -> float: ...
    @property
    def norm_eps(self) -> float: ...


@dataclass(frozen=True)
class Past(Generic[Number]):
    """What a branch is conditioned on.

    Attributes:
        keys: rotated keys of each layer, ``(R, K, D)``; empty when nothing came before.
        values: values, likewise.
        length: rows of each.
        position: the rope position of what follows.
    """

    keys: tuple[Number, ...] = ()
    values: tuple[Number, ...] = ()
    length: int = 0
    position: int = 0


@dataclass(frozen=True)
class Segment(Generic[Number]):
    """Consecutive tokens of one expert, ``(N, H)``."""

    expert: str
    tokens: Number
    length: int


class Bagel(Generic[Number]):
    """The network.

    Args:
        config: its geometry.
        weights: parameters under the names of ``BagelModel.state_dict``, as float64.
        arithmetic: what its operations are carried out in.
    """

    def __init__(self, config: Config, weights: Mapping[str, Array], arithmetic: Arithmetic[Number]) -> None:
        self.config = config
        self.weights = weights
        self.arithmetic = arithmetic

    def read_text(self, past: Past[Number], token_ids: Sequence[int]) -> Past[Number]:
        """``past`` followed by text: each token sees what came before it, and takes one rope position."""
        count = len(token_ids)
        embedded = self.arithmetic.constant(self.weights["embed_tokens"][list(token_ids)])
        sees = np.tril(np.ones((count, past.length + count), dtype=bool), past.length)
        places = past.position + np.arange(count)
        _, after = self._decode([Segment(UNDERSTANDING, embedded, count)], places, past, sees, wide=False)
        return Past(after.keys, after.values, after.length, past.position + count)

    def read_image(self, past: Past[Number], latents: Number, grid: tuple[int, int]) -> Past[Number]:
        """``past`` followed by a clean image (t = 0), which sees all of itself and takes one rope position."""
        _, after = self._see_image(past, latents, 0.0, grid)
        return Past(after.keys, after.values, after.length, past.position + 1)

    def velocity(self, past: Past[Number], x_t: Number, t: float, grid: tuple[int, int]) -> Number:
        """The velocity ``(N, C)`` of latents ``x_t`` at time ``t``, conditioned on ``past``."""
        (_, image, _), _ = self._see_image(past, x_t, t, grid)
        normed = self.arithmetic.rms_norm(image.tokens, self.weights["norm.gen.weight"], self.config.norm_eps)
        return self._linear("llm2vae", normed)

    def _see_image(
        self, past: Past[Number], latents: Number, t: float, grid: tuple[int, int]
    ) -> tuple[list[Segment[Number]], Past[Number]]:
        """Start marker, latents, end marker; no mask, one rope position."""
        rows, columns = grid
        length = rows * columns + 2
        segments = [
            self._marker(self.config.image_start),
            Segment(GENERATION, self._embed(latents, t, grid), rows * columns),
            self._marker(self.config.image_end),
        ]
        sees = np.ones((length, past.length + length), dtype=bool)
        return self._decode(segments, np.full(length, past.position), past, sees, wide=True)

    def _marker(self, token_id: int) -> Segment[Number]:
        row = self.weights["embed_tokens"][token_id : token_id + 1]
        return Segment(UNDERSTANDING, self.arithmetic.constant(row), 1)

    def _embed(self, latents: Number, t: float, grid: tuple[int, int]) -> Number:
        """Latents, their time and their place, summed."""
        a = self.arithmetic
        hidden = a.silu(self._linear("time_embedder.mlp.0", a.cast(a.time_features(t, TIME_FEATURES))))
        time = self._linear("time_embedder.mlp.2", hidden)
        table = self.weights["latent_pos_embed"].reshape(self.config.latent_side, self.config.latent_side, -1)
        places = table[: grid[0], : grid[1]].reshape(grid[0] * grid[1], -1)
        return a.plus(a.plus(self._linear("vae2llm", a.cast(latents)), time), a.constant(places))

    def _decode(
        self,
        segments: list[Segment[Number]],
        positions: Int[np.ndarray, " T"],
        past: Past[Number],
        sees: Bool[np.ndarray, "T R_and_T"],
        wide: bool,
    ) -> tuple[list[Segment[Number]], Past[Number]]:
        """All layers. Returns the residual stream, and ``past`` with the keys and values of these tokens behind it.

        ``wide``: queries and keys keep the computing format from before their norm until after their rotation.
        """
        a = self.arithmetic
        all_keys, all_values = [], []
        for layer in range(self.config.layers):
            queries, keys, values = self._projections(layer, segments, positions, wide)
            if past.length:
                keys = a.concatenate([past.keys[layer], keys])
                values = a.concatenate([past.values[layer], values])
            all_keys.append(keys)
            all_values.append(values)
            attended = a.attend(queries, keys, values, sees)
            segments = self._finish(layer, segments, attended)
        length = past.length + len(positions)
        return segments, Past(tuple(all_keys), tuple(all_values), length, past.position)

    def _projections(
        self, layer: int, segments: list[Segment[Number]], positions: Int[np.ndarray, " T"], wide: bool
    ) -> tuple[Number, Number, Number]:
        """Queries ``(T, A, D)``, keys and values ``(T, K, D)``; the first two with their own RMSNorm, then rotated."""
        a, c = self.arithmetic, self.config
        parts: dict[str, list[Number]] = {"q": [], "k": [], "v": []}
        for segment in segments:
            name = f"layers.{layer}.{segment.expert}"
            normed = a.rms_norm(segment.tokens, self.weights[f"{name}.input_layernorm.weight"], c.norm_eps)
            for letter, found in parts.items():
                projected = a.split_heads(self._linear(f"{name}.self_attn.{letter}_proj", normed), c.head_dim)
                if letter != "v":
                    gain = self.weights[f"{name}.self_attn.{letter}_norm.weight"]
                    projected = a.rms_norm(projected, gain, c.norm_eps, wide)
                found.append(projected)
        q, k, v = (a.concatenate(found) for found in parts.values())
        return a.rotate(q, positions, c.rope_theta, wide), a.rotate(k, positions, c.rope_theta, wide), v

    def _finish(self, layer: int, segments: list[Segment[Number]], attended: Number) -> list[Segment[Number]]:
        """Output projection, then the gated MLP, each added to the residual stream."""
        a = self.arithmetic
        finished, start = [], 0
        for segment in segments:
            name = f"layers.{layer}.{segment.expert}"
            own = a.rows(attended, start, start + segment.length)
            start += segment.length
            x = a.plus(segment.tokens, self._linear(f"{name}.self_attn.o_proj", own))
            normed = a.rms_norm(x, self.weights[f"{name}.post_attention_layernorm.weight"], self.config.norm_eps)
            gate, up = (self._linear(f"{name}.mlp.{part}_proj", normed) for part in ("gate", "up"))
            down = self._linear(f"{name}.mlp.down_proj", a.times(a.silu(gate), up))
            finished.append(Segment(segment.expert, a.plus(x, down), segment.length))
        return finished

    def _linear(self, name: str, x: Number) -> Number:
        return self.arithmetic.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))


def latent_positions(side: int, hidden: int) -> Float64[np.ndarray, "side_squared hidden"]:
    """What the position table of a ``side`` x ``side`` grid holds, before it is rounded to float32.

    A quarter of the channels each: sine and cosine of the column, sine and cosine of the row, at ``p / 10000^(4i/H)``.
    Source: MAE (arXiv 2111.06377).
    """
    frequencies = 10000.0 ** (-4 * np.arange(hidden // 4) / hidden)
    rows, columns = np.indices((side, side)).reshape(2, -1, 1)
    return np.concatenate([f(place * frequencies) for place in (columns, rows) for f in (np.sin, np.cos)], axis=1)
