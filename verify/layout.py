"""How the ranks of a run are laid out: each belongs to a branch group and holds a shard."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from verify.errors import BadInput

# Which part of the whole x_t a shard holds: a dimension that is cut into chunks, or ``cut(whole, shard, shards)``.
Cut = int | Callable[[Tensor, int, int], Tensor]


class Coordinates(NamedTuple):
    """Where a rank is.

    Attributes:
        branch_group: which of the groups that evaluate branches side by side, from 0.
        shard: its number among the ranks that evaluate one branch together, from 0.
    """

    branch_group: int
    shard: int


@dataclass(frozen=True)
class Layout:
    """CFG parallelism times sequence or tensor parallelism.

    Attributes:
        branch_groups: the CFG degree. Group ``i`` evaluates branch ``i``; a group beyond the last branch is a padding
            group, whose evaluations are discarded.
        shards: the sequence or tensor parallel degree: how many ranks evaluate one branch together.
        cut: how ``x_t`` lies within a branch group. None: every rank holds all of it. A dimension: rank ``s`` holds
            chunk ``s`` along it, as ``torch.chunk`` makes it. A function: rank ``s`` holds ``cut(whole, s, shards)``.
        shards_adjacent: whether the ranks of one branch group have successive numbers; otherwise those of one shard
            have.
        splits_weights: each shard holds a part of the weights and contexts of its own, as under tensor parallelism.
    """

    branch_groups: int
    shards: int = 1
    cut: Cut | None = None
    shards_adjacent: bool = True
    splits_weights: bool = False

    def __post_init__(self) -> None:
        for name in ("branch_groups", "shards"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise BadInput.of(f"{name} of a layout", value, "an integer from 1", "correct it")
        is_dimension = isinstance(self.cut, int) and not isinstance(self.cut, bool)
        if not (self.cut is None or is_dimension or callable(self.cut)):
            raise BadInput.of("cut of a layout", self.cut, "None, a dimension or a function", "correct it")

    @property
    def ranks(self) -> int:
        """How many ranks it lays out."""
        return self.branch_groups * self.shards

    def of(self, rank: int) -> Coordinates:
        """The coordinates of a rank of the run."""
        if self.shards_adjacent:
            return Coordinates(*divmod(rank, self.shards))
        shard, branch_group = divmod(rank, self.branch_groups)
        return Coordinates(branch_group, shard)

    def peers(self, rank: int) -> tuple[int, ...]:
        """The ranks with the same shard, in the order of branch groups: the CFG group."""
        shard = self.of(rank).shard
        return tuple(r for r in range(self.ranks) if self.of(r).shard == shard)

    def branch_group(self, rank: int) -> tuple[int, ...]:
        """The ranks that evaluate one branch together with ``rank``, in the order of shards."""
        group = self.of(rank).branch_group
        return tuple(r for r in range(self.ranks) if self.of(r).branch_group == group)

    def like(self, rank: int) -> int:
        """The first rank that holds the same weights and contexts."""
        return self.peers(rank)[0] if self.splits_weights else 0

    def pads(self, rank: int, branches: int) -> bool:
        """Whether a rank evaluates only so that every rank has something to exchange."""
        return self.of(rank).branch_group >= branches

    def part(self, whole: Tensor, shard: int) -> Tensor:
        """What a shard holds of the whole ``x_t``: all of it where that is not cut."""
        if self.cut is None:
            return whole
        if isinstance(self.cut, int):
            return whole.chunk(self.shards, self.cut)[shard]
        return self.cut(whole, shard, self.shards)

    def require_parts(self, whole: Tensor) -> None:
        """Cuts the number of each element in place of its value: the shards must hold each number once.

        Raises:
            BadInput: an element is in no shard or in several, or the function that cuts raises.
        """
        numbers = torch.arange(prod(whole.shape)).view(whole.shape)
        try:
            parts = [self.part(numbers, shard).flatten() for shard in range(self.shards if self.cut is not None else 1)]
            found = torch.cat(parts).sort().values
        except Exception as error:
            raise BadInput(
                f"the cut of a layout of {self.shards} shards raised {type(error).__name__}: {error} for an x_t of "
                f"{tuple(whole.shape)}, expected a shard of it; mend the layout of the target"
            ) from error
        if not torch.equal(found, numbers.flatten()):
            once = torch.bincount(found, minlength=numbers.numel()) if found.numel() else torch.zeros_like(numbers)
            raise BadInput(
                f"the cut of a layout of {self.shards} shards leaves {int((once == 0).sum())} elements of an x_t of "
                f"{tuple(whole.shape)} in no shard and {int((once > 1).sum())} in several, expected each in one: the "
                "shards together must be the whole; mend the layout of the target"
            )

    def told(self, rank: int, branches: tuple[str, ...]) -> str:
        """A rank's coordinates in words: ``branch uncond, shard 1``; empty where there is one shard a branch."""
        branch_group, shard = self.of(rank)
        if self.shards == 1 and self.branch_groups <= len(branches):
            return ""
        branch = f"branch {branches[branch_group]}" if branch_group < len(branches) else f"padding group {branch_group}"
        return branch if self.shards == 1 else f"{branch}, shard {shard}"
