"""What a property looks at: one case on one device, and the combine under test."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float as Floats
from torch import Tensor
from torch.linalg import vector_norm

from verify.bits import bits_of, describe, first_difference, same_bits
from verify.combine import EPS
from verify.fuzz.case import Case
from verify.fuzz.layouts import lay_out
from verify.verdict import Difference

Combine = Callable[..., Tensor]


@dataclass(frozen=True)
class Outcome:
    """The outcome of one property for one case on one rank.

    Attributes:
        elements: how many elements were compared; 0 where the property does not concern the case.
        problem: what is wrong, in words; empty if nothing is.
        difference: where it is wrong, if two tensors were compared.
    """

    elements: int
    problem: str = ""
    difference: Difference | None = None


SILENT = Outcome(0)


def equal(seen: Tensor, wanted: Tensor, problem: str) -> Outcome:
    """Compares the bits of two tensors. ``problem`` says what a difference means."""
    if same_bits(seen, wanted):
        return Outcome(seen.numel())
    if seen.shape != wanted.shape or seen.dtype != wanted.dtype:
        return Outcome(seen.numel(), f"{problem}: {describe(seen)}, expected {describe(wanted)}")
    return Outcome(seen.numel(), problem, first_difference(seen, wanted))


def equal_where(
    mask: Tensor, seen: Floats[Tensor, "tokens channels"], wanted: Floats[Tensor, "tokens channels"], problem: str
) -> Outcome:
    """Compares the bits of the elements that ``mask`` chooses."""
    count = int(mask.sum())
    wrong = mask & (bits_of(seen) != bits_of(wanted))
    if not bool(wrong.any()):
        return Outcome(count)
    # Elements outside the mask are no part of the claim: the message must not count them.
    seen = torch.where(mask, seen, torch.zeros_like(seen))
    wanted = torch.where(mask, wanted, torch.zeros_like(wanted))
    return Outcome(count, problem, first_difference(seen, wanted))


class CombineRaised(Exception):
    """The combine under test raised; the message is its traceback."""


class Subject:
    """One case, built on ``device`` in its layout, with results that several properties use."""

    def __init__(self, case: Case, combine: Combine, device: torch.device) -> None:
        self.case = case
        self._combine = combine
        self.device = device
        self.laid = lay_out(case, device)
        self._kept: dict[tuple[float, float, float, bool], Tensor] = {}

    def combine(self, *arguments: Any) -> Tensor:
        """The combine under test.

        Raises:
            CombineRaised: whatever it raised.
        """
        try:
            return self._combine(*arguments)
        except Exception as error:
            raise CombineRaised(traceback.format_exc(limit=-3)) from error

    @property
    def gen(self) -> Floats[Tensor, "tokens channels"]:
        """The gen branch in its layout."""
        return self.laid.branches[0]

    @property
    def text(self) -> Floats[Tensor, "tokens channels"]:
        """The text branch in its layout."""
        return self.laid.branches[1]

    @property
    def img(self) -> Floats[Tensor, "tokens channels"] | None:
        """The img branch in its layout, if the case has one."""
        return self.laid.branches[2] if len(self.laid.branches) > 2 else None

    def fresh(self, branches: Sequence[Tensor] | None = None) -> Tensor:
        """The combine's result, computed now, on the case's own branches or on others."""
        c = self.case
        gen, text, *img = self.laid.branches if branches is None else branches
        return self.combine(gen, text, img[0] if img else None, c.text_scale, c.img_scale, c.renorm_type, c.renorm_min)

    def with_img(self, img: Tensor | None, img_scale: float) -> Tensor:
        """The result with another image branch."""
        c = self.case
        return self.combine(self.gen, self.text, img, c.text_scale, img_scale, c.renorm_type, c.renorm_min)

    def run(
        self, *, text_scale: float | None = None, renorm_min: float | None = None, text_only: bool = False
    ) -> Tensor:
        """The result with other settings. It is computed once per setting."""
        c = self.case
        text_only = text_only or self.img is None
        scale = c.text_scale if text_scale is None else text_scale
        least = c.renorm_min if renorm_min is None else renorm_min
        key = (scale, c.img_scale, least, text_only)
        if key not in self._kept:
            img = None if text_only else self.img
            self._kept[key] = self.combine(self.gen, self.text, img, scale, c.img_scale, c.renorm_type, least)
        return self._kept[key]

    @cached_property
    def text_only(self) -> bool:
        """Whether the last factor is applied before image guidance: ``text_channel`` renorms in between."""
        return self.img is None or self.case.renorm_type == "text_channel"

    @cached_property
    def guided(self) -> Floats[Tensor, "tokens channels"]:
        """The velocity that the last factor multiplies: guided by text, and by the image unless ``text_only``."""
        guided = self.plain_text()
        if self.text_only:
            return guided
        assert self.img is not None
        return self.img + self.case.img_scale * (guided - self.img)

    def plain_text(self) -> Floats[Tensor, "tokens channels"]:
        """Guidance by the text alone, without a renorm, straight from the formula."""
        return self.text + self.case.text_scale * (self.gen - self.text)

    @property
    def per_token(self) -> bool:
        """Whether each token has a factor of its own."""
        return self.case.renorm_type != "global"

    def factor(self, guided: Tensor, renorm_min: float) -> Floats[Tensor, "#tokens #channels"]:
        """The factor in the velocities' dtype. Only its class (number, zero, NaN) is used, never its last bit."""
        dim = -1 if self.per_token else None
        norms = [vector_norm(x, dim=dim, keepdim=True) for x in (self.gen, guided)]
        factor: Tensor = (norms[0] / (norms[1] + EPS)).clamp(renorm_min, 1.0)
        return factor
