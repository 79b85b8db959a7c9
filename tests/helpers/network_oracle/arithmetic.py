"""The network's operations in float64, and the interface that they share with arithmetics that carry an error along.

Legend: N rows (tokens), H hidden, A query heads, K key/value heads, D head channels, T queries, R keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float64, Int

from verify.oracle.combine import Array, CombineArithmetic, Float64Combine, Number


class Arithmetic(CombineArithmetic[Number], Protocol[Number]):
    """The operations of the network over some kind of number. Weights are plain arrays, exact in every arithmetic."""

    def constant(self, x: Array) -> Number:
        """Data that carries no error."""
        ...

    def cast(self, x: Number) -> Number:
        """Data brought to the network's format."""
        ...

    def rows(self, x: Number, start: int, stop: int) -> Number:
        """Rows ``start`` to ``stop`` of ``x``."""
        ...

    def concatenate(self, parts: Sequence[Number]) -> Number:
        """``parts`` one below the other."""
        ...

    def split_heads(self, x: Number, head_dim: int) -> Number:
        """``(N, A*D)`` as ``(N, A, D)``."""
        ...

    def plus(self, a: Number, b: Number) -> Number:
        """The sum."""
        ...

    def silu(self, x: Number) -> Number:
        """``x / (1 + exp(-x))``."""
        ...

    def linear(self, x: Number, weight: Array, bias: Array | None = None) -> Number:
        """``x @ weight.T + bias``."""
        ...

    def rms_norm(self, x: Number, weight: Array, eps: float, wide: bool = False) -> Number:
        """``x * weight / sqrt(mean(x^2) + eps)`` over the last axis; ``wide``: kept in float32 or wider."""
        ...

    def rotate(self, x: Number, positions: Int[np.ndarray, " N"], theta: float, wide: bool = False) -> Number:
        """Rotary embedding of ``(N, A, D)``: channels i and i + D/2 turn by ``position / theta^(2i/D)``.

        ``wide``: ``x``, products and sum are in float32 or wider; the result is brought to the network's format.
        """
        ...

    def attend(self, q: Number, k: Number, v: Number, allowed: Bool[np.ndarray, "T R"]) -> Number:
        """Softmax attention of ``(T, A, D)`` over ``(R, K, D)``, scaled by ``1/sqrt(D)``, as ``(T, A*D)``."""
        ...

    def time_features(self, t: float, count: int) -> Number:
        """``(1, count)``: cosines, then sines, of ``t / 10000^(i / (count/2))``."""
        ...

    def euler(self, x: Number, velocity: Number, dt: float) -> Number:
        """``x - velocity * dt``."""
        ...


class Float64Network(Float64Combine):
    """Plain float64."""

    def constant(self, x: Array) -> Array:
        """Data that carries no error."""
        return x

    def cast(self, x: Array) -> Array:
        """Data brought to the network's format."""
        return x

    def rows(self, x: Array, start: int, stop: int) -> Array:
        """Rows ``start`` to ``stop`` of ``x``."""
        return x[start:stop]

    def concatenate(self, parts: Sequence[Array]) -> Array:
        """``parts`` one below the other."""
        return np.concatenate(parts)

    def split_heads(self, x: Array, head_dim: int) -> Array:
        """``(N, A*D)`` as ``(N, A, D)``."""
        return x.reshape(len(x), -1, head_dim)

    def plus(self, a: Array, b: Array) -> Array:
        """The sum."""
        return a + b

    def silu(self, x: Array) -> Array:
        """``x / (1 + exp(-x))``."""
        activated: Array = x / (1 + np.exp(-x))
        return activated

    def linear(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        """``x @ weight.T + bias``."""
        product: Array = x @ weight.T
        return product if bias is None else product + bias

    def rms_norm(self, x: Array, weight: Array, eps: float, wide: bool = False) -> Array:
        """``x * weight / sqrt(mean(x^2) + eps)`` over the last axis."""
        normed: Array = x * weight / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps)
        return normed

    def rotate(self, x: Array, positions: Int[np.ndarray, " N"], theta: float, wide: bool = False) -> Array:
        """Rotary embedding (arXiv 2104.09864) as multiplication of complex numbers."""
        half = x.shape[-1] // 2
        turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * rope_angles(positions, half, theta))
        return np.concatenate([turned.real, turned.imag], -1)

    def attend(self, q: Array, k: Array, v: Array, allowed: Bool[np.ndarray, "T R"]) -> Array:
        """Softmax attention; consecutive query heads share a key/value head."""
        shared = q.shape[1] // k.shape[1]
        weights = softmax(attention_scores(q, k), allowed)
        out: Array = np.einsum("tar,rac->tac", weights, np.repeat(v, shared, 1))
        return out.reshape(len(q), -1)

    def time_features(self, t: float, count: int) -> Array:
        """Sinusoidal features of ``t``, as in DiT (arXiv 2212.09748)."""
        angles = t * time_frequencies(count // 2)
        return np.concatenate([np.cos(angles), np.sin(angles)])[None]

    def euler(self, x: Array, velocity: Array, dt: float) -> Array:
        """One Euler step towards t = 0."""
        return x - velocity * dt


def rope_angles(positions: Int[np.ndarray, " N"], half: int, theta: float) -> Float64[np.ndarray, "N 1 half"]:
    """By how much each pair of channels turns at each position."""
    return positions[:, None, None] * theta ** (-np.arange(half) / half)


def time_frequencies(count: int) -> Float64[np.ndarray, " count"]:
    """Falling from 1 towards 1/10000."""
    return 10000.0 ** (-np.arange(count) / count)


def attention_scores(q: Array, k: Array) -> Float64[np.ndarray, "T A R"]:
    """``q . k / sqrt(D)`` of each query with each key."""
    scores: Array = np.einsum("tad,rad->tar", q, np.repeat(k, q.shape[1] // k.shape[1], 1))
    scaled: Array = scores / np.sqrt(q.shape[-1])
    return scaled


def softmax(scores: Float64[np.ndarray, "T A R"], allowed: Bool[np.ndarray, "T R"]) -> Float64[np.ndarray, "T A R"]:
    """Over the keys that each query may attend to; zero for the others."""
    scores = np.where(allowed[:, None], scores, -np.inf)
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    weights: Array = powers / powers.sum(-1, keepdims=True)
    return weights
