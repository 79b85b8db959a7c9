"""Loops that are right for some requests: each hard-codes, ignores or misreads one thing.

They are the ``local`` loop with openings. Every rank of such a loop computes the same, so that one rank shows it all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.linalg import vector_norm

from verify import combine_cfg
from verify.request import DenoiseRequest
from verify.schedule import Schedule

Velocities = list[Tensor]


@dataclass(frozen=True)
class Loop:
    """The local loop with openings.

    Attributes:
        request: what the loop takes the request for, combine and schedule alike.
        schedule: which steps it takes.
        noise: what it begins with.
        wire: what a velocity becomes on its way.
        combine: how velocities are guided.
        step: how ``x_t`` goes on.
    """

    schedule: Callable[[DenoiseRequest], Schedule] = lambda q: q.schedule
    noise: Callable[[DenoiseRequest, Tensor], Tensor] = lambda q, x_0: x_0
    wire: Callable[[Tensor], Tensor] = lambda v: v
    combine: Callable[[DenoiseRequest, Velocities], Tensor] = lambda q, got: combined(q, got)
    step: Callable[[Tensor, Tensor, Tensor, int], Tensor] = lambda x_t, v_t, dt, i: x_t - v_t * dt

    def trace(self, denoiser: Any, request: DenoiseRequest, x_0: Tensor) -> list[Tensor]:
        """``x_t`` after each step."""
        schedule, x_t, found = self.schedule(request), self.noise(request, x_0), []
        for i, (guided, dt) in enumerate(zip(schedule.guided, schedule.dts, strict=True)):
            branches = request.branches if guided and len(request.branches) > 1 else request.branches[:1]
            got = [self.wire(denoiser.velocity(x_t, min(i, request.schedule.steps - 1), b)) for b in branches]
            x_t = self.step(x_t, self.combine(request, got) if len(got) > 1 else got[0], dt, i)
            found.append(x_t)
        return found


def combined(request: DenoiseRequest, got: Velocities, **other: Any) -> Tensor:
    """The combine with some of its arguments replaced."""
    gen, text, *img = got
    values = {
        "text_scale": request.cfg_text_scale,
        "img_scale": request.cfg_img_scale,
        "renorm_type": request.cfg_renorm_type,
        "renorm_min": request.cfg_renorm_min,
    } | other
    return combine_cfg(gen, text, img[0] if img else None, **values)


def combining(**other: Any) -> Loop:
    """A loop whose combine takes these arguments, each a value or a function of the request."""
    return Loop(combine=lambda q, got: combined(q, got, **{k: v(q) if callable(v) else v for k, v in other.items()}))


def scheduling(**other: Any) -> Loop:
    """A loop that takes its schedule from other fields."""

    def schedule(q: DenoiseRequest) -> Schedule:
        fields: dict[str, Any] = {
            "num_timesteps": q.num_timesteps,
            "shift": q.timestep_shift,
            "interval": q.cfg_interval,
        } | {name: value(q) if callable(value) else value for name, value in other.items()}
        return Schedule.of(**fields, has_guidance=len(q.branches) > 1)

    return Loop(schedule=schedule)


def guiding(rule: Callable[[float, float, float], bool]) -> Loop:
    """A loop that guides the steps for which ``rule(t, lo, hi)`` holds."""
    return Loop(
        schedule=lambda q: replace(q.schedule, guided=tuple(rule(t, *q.cfg_interval) for t in q.schedule.timesteps))
    )


def own_combine(
    *, most: float | None = 1.0, eps: float = 1e-8, text_renorm: str = "text_channel", ahead: bool = False,
    in_float32: bool = False,
) -> Loop:  # fmt: skip
    """A loop with a combine of its own; the defaults are right."""

    def factor(gen: Tensor, guided: Tensor, request: DenoiseRequest, per_token: bool) -> Tensor:
        dim = -1 if per_token else None
        gen, guided = (gen.float(), guided.float()) if in_float32 else (gen, guided)
        norms = [vector_norm(v, dim=dim, keepdim=per_token) for v in (gen, guided)]
        return (norms[0] / (norms[1] + eps)).clamp(min=request.cfg_renorm_min, max=most)

    def combine(q: DenoiseRequest, got: Velocities) -> Tensor:
        gen, text, *img = got
        guided = text + q.cfg_text_scale * (gen - text)
        first = q.cfg_renorm_type == text_renorm or (ahead and bool(img))
        if first:
            guided = guided * factor(gen, guided, q, q.cfg_renorm_type != "global").to(guided.dtype)
        guided = img[0] + q.cfg_img_scale * (guided - img[0]) if img else guided
        if first:
            return guided
        return guided * factor(gen, guided, q, q.cfg_renorm_type == "channel").to(guided.dtype)

    return Loop(combine=combine)


def blocks(size: int) -> Loop:
    """A fused step over blocks of tokens that leaves the remainder as it was."""

    def step(x_t: Tensor, v_t: Tensor, dt: Tensor, i: int) -> Tensor:
        whole = len(x_t) // size * size
        return torch.cat([x_t[:whole] - v_t[:whole] * dt, x_t[whole:]])

    return Loop(step=step)


def buffer(size: int) -> Loop:
    """A static buffer of so many tokens: what lies behind it is not stepped."""

    def step(x_t: Tensor, v_t: Tensor, dt: Tensor, i: int) -> Tensor:
        return torch.cat([x_t[:size] - v_t[:size] * dt, x_t[size:]])

    return Loop(step=step)


def table(size: int) -> Loop:
    """A table of so many step sizes, whose last entry serves all steps behind it."""

    def schedule(q: DenoiseRequest) -> Schedule:
        dts = q.schedule.dts.clone()
        dts[size:] = dts[min(size, len(dts)) - 1]
        return replace(q.schedule, dts=dts)

    return Loop(schedule=schedule)


def drawn(seed: Callable[[int], int]) -> Loop:
    """A loop that draws the noise again, from another seed."""

    def noise(q: DenoiseRequest, x_0: Tensor) -> Tensor:
        from verify.bagel.denoiser import initial_noise

        return initial_noise(replace(q, seed=seed(q.seed)), x_0.shape[-1]).to(x_0.dtype)

    return Loop(noise=noise)


def in_float64(q: DenoiseRequest) -> Schedule:
    points = torch.linspace(1, 0, q.num_timesteps, dtype=torch.float64)
    points = (q.timestep_shift * points / (1 + (q.timestep_shift - 1) * points)).float()
    return replace(q.schedule, dts=points[:-1] - points[1:])


def above(t: float, bound: float) -> bool:
    """``t > bound`` as float32 has it."""
    return bool(torch.tensor(t) > torch.tensor(bound))


def at(t: float, bound: float) -> bool:
    """``t == bound`` as float32 has it."""
    return bool(torch.tensor(t) == torch.tensor(bound))


RIGHT = {"local": Loop(), "own combine": own_combine()}
MUTANTS = {
    "text scale 4": combining(text_scale=4.0),
    "text scale at least 1.5": combining(text_scale=lambda q: max(q.cfg_text_scale, 1.5)),
    "text scale at most 5": combining(text_scale=lambda q: min(q.cfg_text_scale, 5.0)),
    "text scale as an integer": combining(text_scale=lambda q: int(q.cfg_text_scale)),
    "no guidance at a low scale": Loop(combine=lambda q, got: got[0] if q.cfg_text_scale <= 1.5 else combined(q, got)),
    "image scale 1.5": combining(img_scale=1.5),
    "image scale as an integer": combining(img_scale=lambda q: int(q.cfg_img_scale)),
    "image scale taken for text's": combining(text_scale=lambda q: q.cfg_img_scale),
    "image left out": Loop(combine=lambda q, got: combined(q, got[:2])),
    "renorm global": combining(renorm_type="global"),
    "renorm channel": combining(renorm_type="channel"),
    "renorm text_channel": combining(renorm_type="text_channel"),
    "channel taken for global": combining(
        renorm_type=lambda q: "global" if q.cfg_renorm_type == "channel" else q.cfg_renorm_type
    ),
    "text_channel without image is global": combining(
        renorm_type=lambda q: "global" if len(q.branches) == 2 else q.cfg_renorm_type
    ),
    "text_channel with image is channel": combining(
        renorm_type=lambda q: "channel" if len(q.branches) == 3 else q.cfg_renorm_type
    ),
    "renorm min 0": combining(renorm_min=0.0),
    "renorm min 1": combining(renorm_min=1.0),
    "renorm min 1 taken for 0": combining(renorm_min=lambda q: q.cfg_renorm_min % 1.0),
    "renorm min of global left out": combining(
        renorm_min=lambda q: 0.0 if q.cfg_renorm_type == "global" else q.cfg_renorm_min
    ),
    "renorm min of text_channel left out": combining(
        renorm_min=lambda q: 0.0 if q.cfg_renorm_type == "text_channel" else q.cfg_renorm_min
    ),
    "renorm min as an integer": combining(renorm_min=lambda q: round(q.cfg_renorm_min)),
    "renorm may amplify": own_combine(most=None),
    "renorm without eps": own_combine(eps=0.0),
    "renorm with another eps": own_combine(eps=1e-5),
    "renorm in float32": own_combine(in_float32=True),
    "renorm before the image": own_combine(ahead=True),
    "text_channel after the image": own_combine(text_renorm="none"),
    "shift 3": scheduling(shift=3.0),
    "shift 1": scheduling(shift=1.0),
    "shift at least 1": scheduling(shift=lambda q: max(1.0, q.timestep_shift)),
    "shift at most 3": scheduling(shift=lambda q: min(3.0, q.timestep_shift)),
    "interval of the default": scheduling(interval=(0.4, 1.0)),
    "lower bound 0.4": scheduling(interval=lambda q: (min(0.4, q.cfg_interval[1]), q.cfg_interval[1])),
    "lower bound 0": scheduling(interval=lambda q: (0.0, q.cfg_interval[1])),
    "lower bound 0 taken for the default": scheduling(interval=lambda q: (q.cfg_interval[0] or 0.4, q.cfg_interval[1])),
    "upper bound 1": scheduling(interval=lambda q: (q.cfg_interval[0], 1.0)),
    "bounds of unshifted times": Loop(
        schedule=lambda q: replace(
            q.schedule, guided=Schedule.of(q.num_timesteps, 1.0, q.cfg_interval, len(q.branches) > 1).guided
        )
    ),
    "lower bound inclusive": guiding(lambda t, lo, hi: (above(t, lo) or at(t, lo)) and not above(t, hi)),
    "upper bound exclusive": guiding(lambda t, lo, hi: above(t, lo) and not above(t, hi) and not at(t, hi)),
    "bounds as host floats": guiding(lambda t, lo, hi: lo < t <= hi),
    "lower bound as a host float": guiding(lambda t, lo, hi: lo < t and not above(t, hi)),
    "upper bound as a host float": guiding(lambda t, lo, hi: above(t, lo) and t <= hi),
    "equal bounds guide all": guiding(lambda t, lo, hi: lo == hi or (above(t, lo) and not above(t, hi))),
    "schedule in float64": Loop(schedule=in_float64),
    "50 timesteps": scheduling(num_timesteps=50),
    "12 timesteps": scheduling(num_timesteps=12),
    "64 timesteps at most": scheduling(num_timesteps=lambda q: min(q.num_timesteps, 65)),
    "a table of 64 steps": table(64),
    "a table of 16 steps": table(16),
    "the last step left out": Loop(
        schedule=lambda q: Schedule(q.schedule.timesteps[:-1], q.schedule.dts[:-1], q.schedule.guided[:-1])
    ),
    "seed 0": drawn(lambda seed: 0),
    "a seed of 31 bits at most": drawn(lambda seed: seed if seed < 2**31 else 2**31 - 1),
    "blocks of 64 tokens": blocks(64),
    "blocks of 16 tokens": blocks(16),
    "blocks of 2 tokens": blocks(2),
    "a buffer of 64 tokens": buffer(64),
    "a buffer of 128 tokens": buffer(128),
    "velocities through bfloat16": Loop(wire=lambda v: v.bfloat16().to(v.dtype)),
    "velocities through float16": Loop(wire=lambda v: v.half().to(v.dtype)),
    "velocities returned as bfloat16": Loop(wire=lambda v: v.bfloat16()),
    "combined in float32": Loop(combine=lambda q, got: combined(q, [v.float() for v in got])),
    "step sizes in bfloat16": Loop(step=lambda x_t, v_t, dt, i: x_t - v_t * dt.bfloat16()),
    "x_t in bfloat16": Loop(step=lambda x_t, v_t, dt, i: (x_t - v_t * dt).bfloat16().float()),
    "steps clamped": Loop(step=lambda x_t, v_t, dt, i: x_t - v_t * dt.clamp(max=0.2)),
}
