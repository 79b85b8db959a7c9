"""The denoising loop in one place: contexts of each branch, one Euler step, all steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Generic, Protocol

from network_oracle.model import Bagel, Past
from network_oracle.schedule import Schedule
from verify.oracle.combine import Array, Number, combine


class Request(Protocol):
    """What must be known of a request."""

    @property
    def grid(self) -> tuple[int, int]: ...
    @property
    def cfg_text_scale(self) -> float: ...
    @property
    def cfg_img_scale(self) -> float: ...
    @property
    def cfg_renorm_type(self) -> str: ...
    @property
    def cfg_renorm_min(self) -> float: ...


class Denoising(Generic[Number]):
    """One request: contexts are read once, then each step evaluates and combines the branches.

    A scale above 1 asks for that guidance. With image guidance ``gen`` has read the image and the prompt, ``text`` the
    image, ``img`` the prompt; without it ``gen`` has read the prompt and ``text`` nothing.

    Args:
        model: the network.
        request: sizes and guidance.
        schedule: of the same request.
        prompt: its token ids, markers included.
        condition: latents of the condition image; needed for image guidance only.
    """

    def __init__(
        self,
        model: Bagel[Number],
        request: Request,
        schedule: Schedule,
        prompt: Sequence[int],
        condition: Array | None = None,
    ) -> None:
        self.model = model
        self.request = request
        self.schedule = schedule
        self.pasts = self._read(prompt, condition)

    def _read(self, prompt: Sequence[int], condition: Array | None) -> Mapping[str, Past[Number]]:
        nothing: Past[Number] = Past()
        if self.request.cfg_img_scale <= 1:
            branches = {"gen": self.model.read_text(nothing, prompt)}
            return branches | {"text": nothing} if self.request.cfg_text_scale > 1 else branches
        if condition is None:
            raise ValueError("image guidance needs the latents of a condition image")
        image = self.model.read_image(nothing, self.model.arithmetic.constant(condition), self.request.grid)
        return {
            "gen": self.model.read_text(image, prompt),
            "text": image,
            "img": self.model.read_text(nothing, prompt),
        }

    def velocity(self, x_t: Number, step: int, branch: str) -> Number:
        """The velocity of one branch at the time at which ``step`` starts."""
        t = float(self.schedule.timesteps[step])
        return self.model.velocity(self.pasts[branch], x_t, t, self.request.grid)

    def step(self, x_t: Number, step: int) -> Number:
        """``x_t`` after ``step``."""
        guided = bool(self.schedule.guided[step]) and len(self.pasts) > 1
        velocities = {branch: self.velocity(x_t, step, branch) for branch in (self.pasts if guided else ("gen",))}
        v_t = self._combined(velocities) if guided else velocities["gen"]
        return self.model.arithmetic.euler(x_t, v_t, float(self.schedule.dts[step]))

    def run(self, x_0: Number) -> Iterator[Number]:
        """``x_t`` after each step."""
        x_t = x_0
        for step in range(len(self.schedule.timesteps)):
            x_t = self.step(x_t, step)
            yield x_t

    def _combined(self, velocities: Mapping[str, Number]) -> Number:
        r = self.request
        return combine(
            velocities["gen"],
            velocities["text"],
            velocities.get("img"),
            r.cfg_text_scale,
            r.cfg_img_scale,
            r.cfg_renorm_type,
            r.cfg_renorm_min,
            self.model.arithmetic,
        )
