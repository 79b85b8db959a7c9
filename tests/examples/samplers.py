"""Engines whose samplers do more than one evaluation of each branch a step, and the targets made of them.

``Heun`` evaluates twice a step, ``Stochastic`` draws noise from a generator and remembers its last velocity,
``Skipping`` answers from a cache where little changes, ``Sounding`` denoises video and audio together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from verify.expected import Call, Exchanges
from verify.schedule import Schedule
from verify.targets.protocol import ModelOptions, Prepared

BRANCHES = ("cond", "uncond")
SHAPES = {"video": (6, 4), "audio": (5,)}


class Network(nn.Module):
    """A velocity for latents of any shape."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(5)
        self.bias = nn.ParameterDict({b: nn.Parameter(torch.randn(4, generator=g), False) for b in BRANCHES})

    def forward(self, x: Tensor, branch: str) -> Tensor:
        bias = self.bias[branch]
        return torch.sin(1.7 * x + bias.sum()) * bias[0] + torch.tanh(x.mean() * bias[1])

    def velocity(self, x_t: Any, step: int, branch: str, t: float | None = None) -> Any:
        at = 1.0 if t is None else 1.0 + 0.1 * t
        if isinstance(x_t, dict):
            return {name: self(part * at, branch) for name, part in x_t.items()}
        return self(x_t * at, branch)


class Engine:
    """What the targets below have in common: two branches, steps of one size, CFG over the ranks of a group."""

    name = "engine"
    expects: Mapping[str, str | Exchanges] = {"parallel": "local"}
    ignores = ("height", "width", "timestep_shift", "cfg_interval", "cfg_img_scale", "cfg_renorm_type",
               "cfg_renorm_min", "dtype")  # fmt: skip

    def __init__(self) -> None:
        self.loops = {"reference": self.loop, "parallel": self.loop}

    def branches(self, request: Any) -> tuple[str, ...]:
        return BRANCHES

    def schedule(self, request: Any) -> Schedule:
        times = torch.linspace(1, 0, request.num_timesteps + 1)
        return Schedule(tuple(times[:-1].tolist()), times[:-1] - times[1:], (True,) * request.num_timesteps)

    def noise(self, request: Any, rank: int) -> Any:
        g = torch.Generator().manual_seed(1000 * request.seed + rank)
        return torch.randn(SHAPES["video"], generator=g)

    def prepare(self, request: Any, options: ModelOptions, rank: int, device: torch.device) -> Prepared:
        network = Network().to(device)
        x_0 = self.noise(request, rank)
        x_0 = {n: p.to(device) for n, p in x_0.items()} if isinstance(x_0, dict) else x_0.to(device)
        return Prepared(network, x_0, {branch: {"bias": network.bias[branch]} for branch in BRANCHES})

    def guided(self, denoiser: Any, request: Any, group: Any, x_t: Tensor, **asked: Any) -> Tensor:
        if group.world_size > 1:
            cond, uncond = group.all_gather(denoiser.velocity(x_t, None, BRANCHES[group.rank], **asked))
        else:
            cond, uncond = (denoiser.velocity(x_t, None, branch, **asked) for branch in BRANCHES)
        return uncond + request.cfg_text_scale * (cond - uncond)

    def loop(self, denoiser: Any, request: Any, x_0: Any, group: Any, observe: Any) -> Any:
        raise NotImplementedError


class Heun(Engine):
    """The last of its steps goes to 0 and is Euler's, as in most implementations."""

    name = "heun"

    def schedule(self, request: Any) -> Schedule:
        plain = super().schedule(request)
        twice = (2,) * (plain.steps - 1) + (1,)
        return Schedule(plain.timesteps, plain.dts, plain.guided, evaluations=twice)

    def second(self, x_t: Tensor, rank: int, step: int) -> Tensor:
        """Where the second evaluation is made."""
        return x_t

    def loop(self, denoiser: Any, request: Any, x_0: Tensor, group: Any, observe: Any) -> Tensor:
        x_t, dts = group.broadcast(x_0), request.schedule.dts
        times = (*request.schedule.timesteps, 0.0)
        for step, dt in enumerate(dts):
            v = self.guided(denoiser, request, group, x_t, t=times[step])
            if step + 1 < len(dts):
                there = self.second(x_t - v * dt, group.rank, step)
                v = (v + self.guided(denoiser, request, group, there, t=times[step + 1])) / 2
            x_t = x_t - v * dt
            observe(step, x_t)
        return x_t


class HeunElsewhere(Heun):
    """A bug: rank 1 makes the second evaluation of step 2 where the first was, one ULP off."""

    name = "heun, second evaluation elsewhere on rank 1"

    def second(self, x_t: Tensor, rank: int, step: int) -> Tensor:
        return torch.nextafter(x_t, x_t + 1) if (rank, step) == (1, 2) else x_t


class Stochastic(Engine):
    """Adds noise in each step and mixes in the velocity before: what it remembers, it shows.

    Args:
        noise_level: how much of the noise a step adds
    """

    name = "stochastic with history"

    def __init__(self, noise_level: float = 0.01) -> None:
        super().__init__()
        self.noise_level = noise_level

    def generator(self, request: Any, rank: int) -> torch.Generator:
        return torch.Generator().manual_seed(request.seed)

    def remembered(self, v: Tensor, rank: int, step: int) -> Tensor:
        return v

    def loop(self, denoiser: Any, request: Any, x_0: Tensor, group: Any, observe: Any) -> Tensor:
        state = {"history": [], "noise": self.generator(request, group.rank)}
        return self.steps(denoiser, request, group.broadcast(x_0), group, observe, 0, state)

    def steps(
        self, denoiser: Any, request: Any, x_t: Tensor, group: Any, observe: Any, first: int, state: Any
    ) -> Tensor:
        history, noise = state["history"], state["noise"]
        for step in range(first, request.schedule.steps):
            v = self.guided(denoiser, request, group, x_t)
            mixed = (3 * v - history[-1]) / 2 if history else v
            history[:] = [*history[-1:], self.remembered(v, group.rank, step)]
            dt = request.schedule.dts[step]
            x_t = x_t - mixed * dt + self.noise_level * torch.randn(x_t.shape, generator=noise)
            observe(step, x_t, {"history": history, "noise": noise})
        return x_t

    def resume(self, denoiser: Any, request: Any, x_t: Tensor, step: int, state: Any, observe: Any) -> Tensor:
        """The reference from ``step`` on."""
        from verify.ranks.group import Alone

        return self.steps(denoiser, request, x_t, Alone(), observe, step, state)


class OwnSeeds(Stochastic):
    """A bug: each rank's generator has a seed of its own."""

    name = "stochastic, a seed of each rank"

    def generator(self, request: Any, rank: int) -> torch.Generator:
        return torch.Generator().manual_seed(request.seed + rank)


class WrongHistory(Stochastic):
    """A bug: rank 1 remembers another velocity from step 2 on; its x_t shows it a step later."""

    name = "stochastic, another history on rank 1"

    def remembered(self, v: Tensor, rank: int, step: int) -> Tensor:
        return v * 1.001 if (rank, step) == (1, 2) else v


class Skipping(Engine):
    """A step cache: where ``x_t`` changed little, the combined velocity of the step before is used again."""

    name = "step cache"

    def schedule(self, request: Any) -> Schedule:
        plain = super().schedule(request)
        return Schedule(plain.timesteps, plain.dts, plain.guided, skips=True)

    def little(self, rank: int, step: int) -> bool:
        return step % 3 == 2

    def loop(self, denoiser: Any, request: Any, x_0: Tensor, group: Any, observe: Any) -> Tensor:
        x_t, cached = group.broadcast(x_0), None
        for step, dt in enumerate(request.schedule.dts):
            if cached is None or not self.little(group.rank, step):
                cached = self.guided(denoiser, request, group, x_t)
            x_t = x_t - cached * dt
            observe(step, x_t, {"cached": cached})
        return x_t


class Sounding(Engine):
    """Video and audio, of one velocity each, gathered one after the other."""

    name = "video and audio"
    # Each part is sent by itself.
    expects = {"parallel": Exchanges(start=(Call("broadcast", src=0),) * 2, guided=(Call("all_gather"),) * 2)}  # noqa: RUF012

    def noise(self, request: Any, rank: int) -> Any:
        g = torch.Generator().manual_seed(1000 * request.seed + rank)
        return {
            "video": torch.randn(SHAPES["video"], generator=g),
            "audio": torch.randn(SHAPES["audio"], generator=g, dtype=torch.float64),
        }

    def after(self, name: str, part: Tensor, rank: int, step: int) -> Tensor:
        return part

    def loop(self, denoiser: Any, request: Any, x_0: Any, group: Any, observe: Any) -> Any:
        x_t = {name: group.broadcast(part) for name, part in x_0.items()}
        for step, dt in enumerate(request.schedule.dts):
            if group.world_size > 1:
                own = denoiser.velocity(x_t, None, BRANCHES[group.rank])
                both = {name: group.all_gather(part) for name, part in own.items()}
            else:
                each = [denoiser.velocity(x_t, None, branch) for branch in BRANCHES]
                both = {name: [v[name] for v in each] for name in x_t}
            for name, (cond, uncond) in both.items():
                v = uncond + request.cfg_text_scale * (cond - uncond)
                x_t[name] = self.after(name, x_t[name] - v * dt, group.rank, step)
            observe(step, x_t)
        return x_t


class OffKey(Sounding):
    """A bug: rank 1's audio is one ULP off in one element after step 3."""

    name = "video and audio, audio off on rank 1"

    def after(self, name: str, part: Tensor, rank: int, step: int) -> Tensor:
        if (name, rank, step) == ("audio", 1, 3):
            part = part.clone()
            part[2] = torch.nextafter(part[2], part[2] + 1)
        return part
