"""A rank's share of a loop: its part of ``x_t``, and who evaluates other branches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from verify.schedule import ALL_GATHER, ALL_REDUCE
from verify.trace.exchanges import Exchange


@dataclass(frozen=True)
class Share:
    """What a layout gives one rank.

    Attributes:
        whole: the shape of the whole ``x_t``.
        part: cuts this rank's part out of a whole ``x_t``.
        peers: the numbers that torch.distributed has for the ranks that evaluate other branches; None where that is not
            known.
    """

    whole: torch.Size
    part: Callable[[Tensor], Tensor] = lambda whole: whole
    peers: frozenset[int] | None = None

    def shown(self, x_t: Tensor) -> Tensor:
        """What a loop shows of an ``x_t`` that it holds: it may hold more than its part."""
        return self.part(x_t) if x_t.shape == self.whole else x_t

    def returned(self, final: Any) -> torch.Size:
        """The shape that a loop may return a latent in: all of it, or its part."""
        whole = torch.empty(self.whole, device="meta")
        return self.whole if getattr(final, "shape", None) == self.whole else self.part(whole).shape

    def sends_velocity(self, exchange: Exchange) -> bool:
        """Whether an exchange goes to ranks that evaluate other branches, and so stands for what a rank evaluated."""
        gathers = exchange.name in (ALL_GATHER, ALL_REDUCE)
        return gathers and self.peers is not None and not self.peers.isdisjoint(exchange.ranks)
