"""What to denoise."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal, get_args

import torch

from verify.errors import BadInput
from verify.schedule import Schedule

RenormType = Literal["global", "channel", "text_channel"]
RENORM_TYPES: tuple[str, ...] = get_args(RenormType)

MAX_TIMESTEPS = 1000
MAX_PIXELS_A_SIDE = 4096
# A Bagel latent token covers 16 x 16 pixels: the VAE shrinks 8 times, then 2 x 2 latents make a token.
PIXELS_PER_TOKEN_SIDE = 16


@dataclass(frozen=True)
class DenoiseRequest:
    """One image to denoise. Frozen; every field is checked when the request is made.

    Defaults are those of Bagel's own notebook for text-to-image, at the size of the ``tiny`` preset. Its app has an
    image scale of 1.5, its ``inferencer.py`` a text scale of 3.0 and an image scale of 1.5.

    Attributes:
        height: pixels, a multiple of 16 from 16 to 4096.
        width: pixels, likewise.
        num_timesteps: points on [1, 0], from 2 to 1000; the loop takes ``num_timesteps - 1`` Euler steps.
        timestep_shift: positive and finite; 1 leaves the points evenly spaced.
        cfg_interval: ``(lo, hi)``: a step at ``t`` is guided when ``lo < t <= hi``.
        cfg_text_scale: from 1 to 1000; above 1 the ``text`` branch is evaluated.
        cfg_img_scale: from 1 to 1000; above 1 the ``img`` branch is evaluated; it needs text guidance.
        cfg_renorm_type: over what the combined velocity's norm is held.
        cfg_renorm_min: from 0 to 1, the least factor the renorm may apply; 1 turns it off.
        seed: from 0 to 2**63 - 1: noise, prompt and condition image are drawn from it.

    Raises:
        BadInput: for a field out of range; the message names it.
    """

    height: int = 128
    width: int = 128
    num_timesteps: int = 50
    timestep_shift: float = 3.0
    cfg_interval: tuple[float, float] = (0.4, 1.0)
    cfg_text_scale: float = 4.0
    cfg_img_scale: float = 1.0
    cfg_renorm_type: RenormType = "global"
    cfg_renorm_min: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for side in ("height", "width"):
            self._integer(side, PIXELS_PER_TOKEN_SIDE, MAX_PIXELS_A_SIDE)
            if getattr(self, side) % PIXELS_PER_TOKEN_SIDE:
                lower = getattr(self, side) // PIXELS_PER_TOKEN_SIDE * PIXELS_PER_TOKEN_SIDE
                raise BadInput.of(
                    side,
                    getattr(self, side),
                    f"a multiple of {PIXELS_PER_TOKEN_SIDE} pixels",
                    f"use {lower} or {lower + PIXELS_PER_TOKEN_SIDE}",
                )
        self._integer("num_timesteps", 2, MAX_TIMESTEPS)
        self._integer("seed", 0, 2**63 - 1)
        self._number("timestep_shift", 1e-3, 1e3)
        self._number("cfg_text_scale", 1.0, 1e3)
        self._number("cfg_img_scale", 1.0, 1e3)
        self._number("cfg_renorm_min", 0.0, 1.0)
        self._interval()
        if not isinstance(self.cfg_renorm_type, str) or self.cfg_renorm_type not in RENORM_TYPES:
            raise BadInput.of(
                "cfg_renorm_type", self.cfg_renorm_type, f"one of {', '.join(RENORM_TYPES)}", "choose one"
            )
        if self.cfg_img_scale > 1.0 and self.cfg_text_scale <= 1.0:
            raise BadInput.of(
                "cfg_img_scale",
                self.cfg_img_scale,
                "1.0 when cfg_text_scale is 1.0, because Bagel guides by the image only on top of the text",
                "raise cfg_text_scale above 1.0 or leave cfg_img_scale at 1.0",
            )

    def _integer(self, name: str, least: int, greatest: int) -> None:
        value = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= greatest:
            raise BadInput.of(name, value, f"an integer from {least} to {greatest}", "choose one in that range")

    def _number(self, name: str, least: float, greatest: float) -> None:
        value = getattr(self, name)
        if not _is_number(value) or not least <= value <= greatest:
            raise BadInput.of(name, value, f"a number from {least:g} to {greatest:g}", "choose one in that range")
        object.__setattr__(self, name, float(value))

    def _interval(self) -> None:
        value = self.cfg_interval
        expected = "two numbers LO HI with 0 <= LO <= HI <= 1"
        if not isinstance(value, (tuple, list)) or len(value) != 2 or not all(map(_is_number, value)):
            raise BadInput.of("cfg_interval", value, expected, "give both bounds")
        lo, hi = value
        if not 0.0 <= lo <= hi <= 1.0:
            raise BadInput.of("cfg_interval", value, expected, "order the bounds within [0, 1]")
        object.__setattr__(self, "cfg_interval", (float(lo), float(hi)))

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of latent tokens."""
        return self.height // PIXELS_PER_TOKEN_SIDE, self.width // PIXELS_PER_TOKEN_SIDE

    @property
    def tokens(self) -> int:
        """Latent tokens of the image."""
        rows, columns = self.grid
        return rows * columns

    @cached_property
    def branches(self) -> tuple[str, ...]:
        """The branches this request evaluates at a guided step, in rank order."""
        names = ["gen"]
        if self.cfg_text_scale > 1.0:
            names.append("text")
        if self.cfg_img_scale > 1.0:
            names.append("img")
        return tuple(names)

    @cached_property
    def schedule(self) -> Schedule:
        """Timesteps, step sizes and guided steps, on the CPU unless the request was placed with :meth:`on`."""
        return Schedule.of(self.num_timesteps, self.timestep_shift, self.cfg_interval, len(self.branches) > 1)

    def on(self, device: torch.device) -> ResolvedRequest:
        """The same request with the schedule's tensors on ``device``.

        Bagel multiplies a bf16 velocity by a step size that lies on the GPU. PyTorch rounds such a 0-d tensor to bf16
        first, but keeps a 0-d CPU tensor in float32, so where the step size lies decides bits.
        """
        return self.resolved(self.schedule.to(device))

    def resolved(self, schedule: Schedule | None = None, branches: tuple[str, ...] | None = None) -> ResolvedRequest:
        """The same fields with a schedule and branches of their own: this request's where they are left out."""
        return ResolvedRequest(
            **{each.name: getattr(self, each.name) for each in fields(DenoiseRequest)},
            schedule=self.schedule if schedule is None else schedule,
            branches=self.branches if branches is None else branches,
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields that a user sets, as plain JSON values."""
        values = {each.name: getattr(self, each.name) for each in fields(DenoiseRequest)}
        values["cfg_interval"] = list(self.cfg_interval)
        return values


@dataclass(frozen=True)
class ResolvedRequest(DenoiseRequest):
    """A request with the schedule and branches that a target makes of it: what its loops are given and held to.

    Two of them are equal only if schedule and branches are.

    Attributes:
        schedule: timesteps, step sizes and guided steps.
        branches: the branches evaluated at a guided step, in rank order.
    """

    schedule: Schedule = field(kw_only=True)
    branches: tuple[str, ...] = field(kw_only=True)


def _is_number(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)
