"""Randomised rounding: each operator's result moves at random, by as much as another way to compute it might move it.

Stochastic arithmetic as in CADNA (Jezequel and Chesneaux, Comput. Phys. Commun. 178, 2008) and Verificarlo (Denis, de
Oliveira Castro and Petit, ARITH 2016), by operators of PyTorch instead of machine instructions.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from verify.dispatch import OperatorMode
from verify.rounding.movement import UNITS, Kind, kind_of, narrows, size_of

# Up, down, or stay: a variance of half a squared unit. Two results that are each rounded to nearest differ by 1/6 of
# one; a product that tensor parallelism splits in N shards, adding them in a tree in its own dtype, by 1/4 (N = 2) to
# 5/12 (N = 8). So an engine's roundings vary less than these do, which a test against false alarms needs.
MOVING = 0.5


class NoiseTable:
    """Directions (-1, 0, 1) drawn once for a device; each operator reads them from another offset."""

    def __init__(self, device: torch.device, seed: int) -> None:
        self._device, self._seed = device, seed
        self._tables: dict[torch.dtype, Tensor] = {}

    def read(self, like: Tensor, source: random.Random) -> Tensor:
        """Directions for each element of ``like``, times its dtype's unit roundoff."""
        table = self._tables.get(like.dtype)
        if table is None or table.numel() < 2 * like.numel():
            table = self._tables[like.dtype] = self._drawn(max(1 << 18, 4 * like.numel()), like.dtype)
        begin = int(source.random() * (table.numel() - like.numel()))
        return table[begin : begin + like.numel()].view(like.shape)

    def _drawn(self, count: int, dtype: torch.dtype) -> Tensor:
        generator = torch.Generator(self._device).manual_seed(self._seed)
        drawn = torch.randint(0, int(2 / MOVING), (count,), generator=generator, device=self._device, dtype=torch.int8)
        directions = (drawn == 0).to(dtype) - (drawn == 1).to(dtype)
        # A little above half a unit in the last place at the foot of a binade, so that the sum is rounded past the tie.
        return directions * (UNITS[dtype] * (1 + 4 * UNITS[dtype]))


class RandomisedRounding(OperatorMode):
    """While it is on, every operator's result moves as one draw of ``seed`` has it."""

    def __init__(self, table: NoiseTable, seed: int) -> None:
        super().__init__()
        self._table = table
        self._source = random.Random(seed)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        named = kwargs or {}
        results = func(*args, **named)
        kind, name = kind_of(func)
        if kind is Kind.EXACT:
            return results
        if isinstance(results, Tensor):
            return self._moved(func, kind, name, results, args, named)
        if isinstance(results, (tuple, list)) and results and isinstance(results[0], Tensor):
            # Attention and norms return what they are called for first, then what they keep for going backward.
            return type(results)([self._moved(func, kind, name, results[0], args, named), *results[1:]])
        return results

    def _moved(self, func: Any, kind: Kind, name: str, result: Tensor, args: Any, named: Mapping[str, Any]) -> Tensor:
        if result.dtype not in UNITS or not result.numel() or (kind is Kind.COPY and not narrows(result, args)):
            return result
        noise = self._table.read(result, self._source)
        if func._schema.is_mutable:
            # What the sum was made of has been written over; its result says of what size it is.
            return result.addcmul_(size_of(func, Kind.IN_PLACE, name, result, args, named), noise)
        return torch.addcmul(result, size_of(func, kind, name, result, args, named), noise)


@contextmanager
def randomised(table: NoiseTable, seed: int) -> Iterator[None]:
    """Randomised rounding in the block; the generators of PyTorch are not touched."""
    with RandomisedRounding(table, seed):
        yield
