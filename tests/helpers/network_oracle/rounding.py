"""How far PyTorch's rounding can carry a velocity from its float64 value: a running error analysis.

Beside each value goes what its computed counterpart may be off by; every operation passes the errors of its operands
on through its derivative and adds the roundings that PyTorch makes in it (Higham, Accuracy and Stability of Numerical
Algorithms, 2nd ed., sections 3.1 to 3.3). The factors are the unit roundoffs, the counts of roundings, and the
documented errors of library functions; none is fitted. Errors are followed to first order: products of two errors are
left out.

Two analyses share every formula and differ in the power p in which errors are added up:

- ``worst`` (p = 1): absolute values add. To first order no rounding whatever can exceed it.
- ``likely`` (p = 2): squares add. Each rounding is taken for an independent variable of mean zero; one that errs by at
  most r is then sub-Gaussian with variance proxy r^2 (Hoeffding), and proxies pass through derivatives squared (Higham
  and Mary, SIAM J. Sci. Comput. 41, 2019). Errors of two operands are also taken to be uncorrelated, which tokens that
  share a rounded time embedding, a rounded cosine or a rounded key are not. :class:`Tracked` states the probability of
  its limits.

The kernels analysed are those that PyTorch uses on the CPU (established by experiment on 2.13; the tests assert the
first two): bfloat16 matrix products and norms in float32 with one rounding at the end, bias included; SiLU, sums and
products with one rounding each; RMSNorm in float32 up to its rounded normalised value, then a product; cosines and
sines in float32, then rounded; in a pass over latents no rounding to bfloat16 from the norm of queries and keys until
after their rotation (``wide``); flash attention with float32 scores, the unnormalised weights rounded to bfloat16 and
the sum over values in float32. On a GPU the same holds as long as TF32 and reduced-precision reductions are off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from network_oracle.arithmetic import Float64Network, attention_scores, rope_angles, softmax, time_frequencies
from verify.oracle.combine import EPS, Array
from verify.oracle.formats import Format

# Largest errors of elementary functions in units of the last place: 2 for exp, sin, cos and rsqrt, 4 for pow (CUDA C++
# Programming Guide, "Mathematical Functions"); SLEEF, which PyTorch uses on the CPU, promises 1. One such unit is at
# most two unit roundoffs.
_ELEMENTARY, _POWER = 2 * 2, 2 * 4
# Flash attention on the CPU calls Vectorized::exp_u20 (aten/src/ATen/cpu/vec), named for its 20 such units.
_ATTENTION_EXP = 2 * 20
# Flash kernels take at least so many keys at a time, and rescale what they have whenever the maximum grows.
_KEYS_A_BLOCK = 64

WORST, LIKELY = 1, 2


@dataclass(frozen=True)
class Tracked:
    """Values and what they may be off by.

    Attributes:
        value: in float64.
        spread: the error to the power ``p``: a bound for p = 1, a variance proxy for p = 2.
        p: 1 or 2.
    """

    value: Array
    spread: Array
    p: int

    def limit(self, probability: float = 1e-6) -> Array:
        """What the error of no element exceeds: for p = 2, except with ``probability`` for all elements together.

        A sub-Gaussian variable with proxy s^2 exceeds ``l*s`` in size with probability at most ``2*exp(-l^2/2)``.
        """
        if self.p == WORST:
            return self.spread
        return np.sqrt(self.spread * 2 * math.log(2 * self.spread.size / probability))

    def norm_limit(self, probability: float = 1e-6) -> float:
        """What the Euclidean norm of the error does not exceed: for p = 2, except with ``probability``.

        For a sub-Gaussian vector whose proxies sum to S: ``|e|^2 <= S * (1 + 2*sqrt(l) + 2*l)`` but for probability
        ``exp(-l)``, however its elements are correlated (Hsu, Kakade and Zhang, Electron. Commun. Probab. 17, 2012).
        """
        if self.p == WORST:
            return float(np.linalg.norm(self.spread))
        log = -math.log(probability)
        return math.sqrt(float(self.spread.sum()) * (1 + 2 * math.sqrt(log) + 2 * log))


class Rounding:
    """The operations of :class:`Float64Network` with an error beside each value.

    Args:
        network: the format of weights, activations and velocities; ``network.compute`` is what PyTorch computes in.
        latents: the format of ``x_t``.
        p: ``WORST`` or ``LIKELY``.
    """

    def __init__(self, network: Format, latents: Format, p: int) -> None:
        self.p = p
        self.network = network
        self.latents = latents
        self.exact = Float64Network()
        self._c = network.compute.unit
        # Where a format computes in itself, the last rounding of an operation is the rounding of its result.
        self._u = network.unit if network.compute is not network else 0.0

    def constant(self, x: Array) -> Tracked:
        """Data that carries no error."""
        return Tracked(x, np.zeros_like(x), self.p)

    def cast(self, x: Tracked) -> Tracked:
        """One rounding where the network's format is coarser than float32."""
        return self._track(x.value, x.spread)

    def rows(self, x: Tracked, start: int, stop: int) -> Tracked:
        """Rows ``start`` to ``stop`` of ``x``."""
        return Tracked(x.value[start:stop], x.spread[start:stop], self.p)

    def concatenate(self, parts: Sequence[Tracked]) -> Tracked:
        """``parts`` one below the other."""
        return Tracked(np.concatenate([x.value for x in parts]), np.concatenate([x.spread for x in parts]), self.p)

    def split_heads(self, x: Tracked, head_dim: int) -> Tracked:
        """``(N, A*D)`` as ``(N, A, D)``."""
        split = self.exact.split_heads
        return Tracked(split(x.value, head_dim), split(x.spread, head_dim), self.p)

    def plus(self, a: Tracked, b: Tracked) -> Tracked:
        """Both errors, and one rounding."""
        return self._track(a.value + b.value, a.spread + b.spread, roundings=1)

    def times(self, a: Tracked, b: Tracked) -> Tracked:
        """Each error times the other factor, and one rounding."""
        spread = self._power(b.value) * a.spread + self._power(a.value) * b.spread
        return self._track(a.value * b.value, spread, roundings=1)

    def silu(self, x: Tracked) -> Tracked:
        """Sigmoid s and derivative ``s*(1 + x*(1-s))``; the error of exp reaches the result shrunk."""
        sigmoid = 1 / (1 + np.exp(-x.value))
        slope = sigmoid * (1 + x.value * (1 - sigmoid))
        return self._track(x.value * sigmoid, self._power(slope) * x.spread, roundings=2, relative=[_ELEMENTARY])

    def linear(self, x: Tracked, weight: Array, bias: Array | None = None) -> Tracked:
        """An inner product of n terms in any order errs by at most n roundings of the sum of absolute terms.

        Source: Jeannerod and Rump, SIAM J. Matrix Anal. Appl. 34, 2013; the bias is one term more.
        """
        magnitude = np.abs(x.value) @ np.abs(weight).T
        terms = weight.shape[1]
        if bias is not None:
            magnitude, terms = magnitude + np.abs(bias), terms + 1
        spread = x.spread @ self._power(weight).T + terms * self._power(self._c * magnitude)
        return self._track(self.exact.linear(x.value, weight, bias), spread)

    def rms_norm(self, x: Tracked, weight: Array, eps: float, wide: bool = False) -> Tracked:
        """Derivative ``w_i*r*(d_ij - x_i*x_j*r^2/n)`` with ``r = 1/sqrt(mean(x^2) + eps)``.

        The mean of n squares (a sum times a rounded 1/n) and its sum with ``eps`` make n+3 roundings, of which the root
        passes on half. Two products follow, by ``r`` and by the weight; each is stored, unless all is ``wide``.
        """
        n = x.value.shape[-1]
        r = 1 / np.sqrt(np.mean(x.value**2, -1, keepdims=True) + eps)
        pull = x.value * r**2 / n
        common = np.sum(self._power(x.value) * x.spread, -1, keepdims=True) - self._power(x.value) * x.spread
        spread = self._power(weight * r) * (
            self._power(1 - x.value * pull) * x.spread + self._power(pull) * np.maximum(common, 0)
        )
        halves = (n + 3) * 0.5**self.p
        stored = 0 if wide else 2
        return self._track(x.value * r * weight, spread, 2 + halves, relative=[_ELEMENTARY], stored=stored)

    def rotate(self, x: Tracked, positions: Int[np.ndarray, " N"], theta: float, wide: bool = False) -> Tracked:
        """The rotation's own derivative; errors of the angle, its cosine and its sine; three roundings.

        Cosine and sine are stored; the two products are too, unless all is ``wide``.
        """
        half = x.value.shape[-1] // 2
        angles = rope_angles(positions, half, theta)
        exponents = np.arange(half) / half
        # theta^(i/half): the exponent's rounding is magnified by its logarithm; then the power itself, its reciprocal,
        # and the product with the position.
        angle = self._power(np.abs(angles) * self._c) * (
            self._power(math.log(theta) * exponents) + self._power(_POWER) + 2
        )
        cos, sin = np.cos(angles), np.sin(angles)
        own_error = self._power(_ELEMENTARY * self._c) + self._power(self._u)
        cos_spread = self._power(sin) * angle + own_error * self._power(cos)
        sin_spread = self._power(cos) * angle + own_error * self._power(sin)
        stored = 0 if wide else self._power(self._u)
        parts = []
        for own, other in ((slice(0, half), slice(half, None)), (slice(half, None), slice(0, half))):
            a, b = x.value[..., own], x.value[..., other]
            spread = self._power(cos) * x.spread[..., own] + self._power(sin) * x.spread[..., other]
            spread = spread + self._power(a) * cos_spread + self._power(b) * sin_spread
            spread = spread + stored * (self._power(a * cos) + self._power(b * sin))
            # Two products and a sum; each is at most the sum of the products' sizes.
            parts.append(spread + 3 * self._power(self._c * (np.abs(a * cos) + np.abs(b * sin))))
        return self._track(self.exact.rotate(x.value, positions, theta), np.concatenate(parts, -1))

    def attend(self, q: Tracked, k: Tracked, v: Tracked, allowed: Bool[np.ndarray, "T R"]) -> Tracked:
        """A score that is off by e moves the output by ``e * p_r * (v_r - out)``, where p_r is the key's weight.

        A query is off in all scores at once, so its derivative ``sum_r p_r*(v_r - out)*k_r/sqrt(D)`` is formed before
        absolute values are taken.
        """
        shared, depth, keys = q.value.shape[1] // k.value.shape[1], q.value.shape[-1], len(k.value)
        k_value, k_spread, v_value, v_spread = (np.repeat(x, shared, 1) for x in (k.value, k.spread, v.value, v.spread))
        scores = attention_scores(q.value, k.value)
        weights = softmax(scores, allowed)
        out = np.einsum("tar,rac->tac", weights, v_value)
        pull = weights[..., None] * (v_value.swapaxes(0, 1) - out[:, :, None])

        by_query = pull.swapaxes(2, 3) @ k_value.swapaxes(0, 1) / math.sqrt(depth)
        spread = (self._power(by_query) @ q.spread[..., None])[..., 0]

        each_query = self._power(q.value / math.sqrt(depth))
        score_spread = np.einsum("tad,rad->tar", each_query, k_spread)
        sizes = np.einsum("tad,rad->tar", np.abs(q.value), np.abs(k_value)) / math.sqrt(depth)
        below_top = scores - np.where(allowed[:, None], scores, -np.inf).max(-1, keepdims=True)
        # The product, 1/sqrt(D) and its multiplication; the distance from the greatest score; exp; rescalings.
        score_spread += (depth + 2) * self._power(self._c * sizes) + self._power(self._c * below_top)
        score_spread += (1 + keys // _KEYS_A_BLOCK) * self._power(_ATTENTION_EXP * self._c)
        spread += (self._power(pull) * score_spread[..., None]).sum(2)

        by_value = self._power(weights)
        spread += np.einsum("tar,rac->tac", by_value, v_spread + self._power(self._u * v_value))
        # The sum of weighted values, the sum of weights, their quotient.
        size = np.einsum("tar,rac->tac", weights, np.abs(v_value))
        spread += keys * self._power(self._c * size) + (keys + 2) * self._power(self._c * out)
        return self._track(out.reshape(len(out), -1), spread.reshape(len(out), -1))

    def time_features(self, t: float, count: int) -> Tracked:
        """``t * exp(-log(10000)*i/half)``: three roundings of the exponent, exp, the product, then cosine and sine."""
        frequencies = time_frequencies(count // 2)
        angles = t * frequencies
        angle = self._power(self._c * angles) * (3 * self._power(np.log(frequencies)) + self._power(_ELEMENTARY) + 1)
        cos, sin = np.cos(angles), np.sin(angles)
        spread = np.concatenate([self._power(sin) * angle, self._power(cos) * angle])
        value = np.concatenate([cos, sin])
        return Tracked(value[None], (spread + self._power(_ELEMENTARY * self._c * value))[None], self.p)

    def extrapolate(self, base: Tracked, scale: float, towards: Tracked) -> Tracked:
        """``(1-s)*base + s*towards``; the difference, its product with a rounded s, and the sum round once each."""
        apart = scale * (towards.value - base.value)
        spread = self._power(1 - scale) * base.spread + self._power(scale) * towards.spread
        spread = spread + 3 * self._power(self._c * apart) + 2 * self._power(self._u * apart)
        return self._track(base.value + apart, spread, roundings=1)

    def renorm_factor(self, gen: Tracked, guided: Tracked, per_token: bool, least: float) -> Tracked:
        """Norms, their quotient, and a clamp, which magnifies no error."""
        above, below = (self._norm(x, per_token) for x in (gen, guided))
        below = self._track(below.value + EPS, below.spread + self._power((self._u + self._c) * EPS), roundings=1)
        quotient = above.value / below.value
        spread = (above.spread + self._power(quotient) * below.spread) / self._power(below.value)
        spread = spread + np.where(quotient <= least, self._power((self._u + self._c) * least), 0)
        rounded = self._track(quotient, spread, roundings=1)
        return Tracked(np.clip(quotient, least, 1.0), rounded.spread, self.p)

    def euler(self, x: Tracked, velocity: Tracked, dt: float) -> Tracked:
        """A product in the network's format (a GPU rounds ``dt`` to it first), then a sum in that of ``x_t``."""
        moved = self._track(velocity.value * dt, self._power(dt) * velocity.spread, roundings=1)
        stepped = x.value - moved.value
        spread = x.spread + moved.spread + self._power(self._u * moved.value)
        return Tracked(stepped, spread + self._power(self.latents.unit * stepped), self.p)

    def _norm(self, x: Tracked, per_token: bool) -> Tracked:
        """Derivative ``x/|x|`` (at zero: 1); n roundings of the sum, of which the root passes on half, and its own."""
        axes = -1 if per_token else None
        norm: Array = np.sqrt(np.sum(x.value**2, axes, keepdims=True))
        slope = np.divide(x.value, norm, out=np.ones_like(x.value), where=norm > 0)
        terms = x.value.shape[-1] if per_token else x.value.size
        spread: Array = np.sum(self._power(slope) * x.spread, axes, keepdims=True)
        return self._track(norm, spread, roundings=1 + terms * 0.5**self.p)

    def _power(self, x: Array | float) -> Array:
        powered: Array = np.abs(x) ** self.p
        return powered

    def _track(
        self, value: Array, spread: Array, roundings: float = 0, relative: Sequence[float] = (), stored: int = 1
    ) -> Tracked:
        """``spread``, roundings of the result while computing (``relative``: larger ones), and those of storing it."""
        count = roundings + sum(self._power(r) for r in relative)
        rounded = count * self._power(self._c * value) + stored * self._power(self._u * value)
        return Tracked(value, spread + rounded, self.p)
