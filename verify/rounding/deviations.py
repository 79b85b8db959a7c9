"""How far a step's ``x_t`` lies from the reference's: the engine's once, and as many draws of randomised rounding.

Legend: N tokens, C channels, K draws.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]

# The kinds of energy that are judged, each of which sees another kind of fault.
WHOLE, TOKEN, CHANNEL, ELEMENT = KINDS = ("x_t as a whole", "token", "channel", "element")


@dataclass(frozen=True)
class Deviation:
    """One step of ranks that began and ended it with the same bytes.

    Attributes:
        step: which.
        ranks: whose; the first stands for all.
        equal: whether it ended with the reference's bytes. Then nothing was drawn.
        seen: for each kind the engine's energy of each unit: 1, N, C, and 1 for the element that stands out most.
        drawn: the same of each draw, (K, units). For elements, the greatest of each draw's elements (K, most).
        element: the index of the element that stands out most.
        elements: how many there are.
        finite: whether the engine's and every draw's ``x_t`` are finite.
        reason: why the reference could not take the step alone; empty if it could.
        form: how the engine's ``x_t`` differs in shape or dtype; empty if it does not.
    """

    step: int
    ranks: tuple[int, ...]
    equal: bool
    seen: dict[str, Array]
    drawn: dict[str, Array]
    element: tuple[int, ...] = ()
    elements: int = 0
    finite: bool = True
    form: str = ""
    reason: str = ""


class Deviations:
    """Collects the draws of one step, on their device, without keeping their ``x_t``."""

    def __init__(self, reference: Float[Tensor, "n c"], engine: Float[Tensor, "n c"]) -> None:
        self._reference = _as_rows(reference).double()
        self._engine = _as_rows(engine).double() - self._reference
        self._squares: list[Tensor] = []

    def add(self, x_t: Float[Tensor, "n c"]) -> None:
        """One draw."""
        self._squares.append((_as_rows(x_t).double() - self._reference).square())

    def energies(self, step: int, ranks: tuple[int, ...]) -> Deviation:
        """What the engine and the draws were found to deviate by."""
        drawn, seen = torch.stack(self._squares), self._engine.square()
        of_tokens, of_channels = drawn.mean(2), drawn.mean(1)
        expected = _expected(of_tokens.mean(0), of_channels.mean(0))
        # The greatest of the draws' elements bear the test of the tail; with them goes how many there are.
        standing_out = torch.where(drawn > 0, drawn / expected, 0.0).flatten(1)
        own = torch.where(seen > 0, seen / expected, 0.0)
        most = int(own.argmax())
        kept = min(64, standing_out.shape[1])
        return Deviation(
            step,
            ranks,
            False,
            {
                WHOLE: _numpy(seen.mean()[None]),
                TOKEN: _numpy(seen.mean(1)),
                CHANNEL: _numpy(seen.mean(0)),
                ELEMENT: _numpy(own.flatten()[most][None]),
            },
            {
                WHOLE: _numpy(drawn.mean((1, 2))[:, None]),
                TOKEN: _numpy(of_tokens),
                CHANNEL: _numpy(of_channels),
                ELEMENT: _numpy(standing_out.topk(kept).values),
            },
            divmod(most, seen.shape[1]),
            seen.numel(),
            bool(torch.isfinite(drawn).all() and torch.isfinite(seen).all()),
        )


def _expected(tokens: Tensor, channels: Tensor) -> Tensor:
    """The energy that an element should have by its token's and its channel's."""
    whole = tokens.mean().clamp_min(1e-300)
    return tokens[:, None] * channels[None, :] / whole


def _as_rows(x_t: Tensor) -> Tensor:
    """Tokens by channels, whatever the latent's shape."""
    return x_t.reshape(-1, x_t.shape[-1]) if x_t.ndim > 1 else x_t.reshape(1, -1)


def _numpy(tensor: Tensor) -> Array:
    found: Array = tensor.cpu().numpy()
    return found
