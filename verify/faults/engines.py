"""Small engines with more than one rank a branch, with padding ranks, and with sums: for faults of what Bagel has not.

The network is made of operators on single elements, so that a shard's bits do not depend on how much else is computed
with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from verify.expected import BRANCHES, EVERYBODY, SHARDS, VELOCITY, X_T, Call, Exchanges
from verify.layout import Layout
from verify.protocols import Denoiser, Group, Loop, Observe
from verify.request import DenoiseRequest
from verify.schedule import ALL_GATHER, ALL_REDUCE, BROADCAST, Schedule
from verify.targets.protocol import ModelOptions, Prepared

NAMES = ("cond", "uncond")
TOKENS, CHANNELS = 24, 6

# The groups made in this process, of the default group that is there now.
_groups: dict[tuple[Any, tuple[int, ...]], Any] = {}


def _group_with(layout: Layout, of: Callable[[int], tuple[int, ...]], rank: int) -> Any:
    """This rank's group of those that ``of`` gives; every rank makes all of them, in one order."""
    for members in dict.fromkeys(of(each) for each in range(layout.ranks)):
        key = (dist.group.WORLD, members)
        if key not in _groups:
            _groups[key] = dist.new_group(list(members))
    return _groups[dist.group.WORLD, of(rank)]


class EngineGroup:
    """What a loop exchanges over: the CFG group, this branch's group, and all ranks."""

    def __init__(self, layout: Layout, rank: int) -> None:
        self.layout, self.number = layout, rank
        self.cfg = _group_with(layout, layout.peers, rank)
        self.branch = _group_with(layout, layout.branch_group, rank)
        self.rank, self.world_size = layout.of(rank).branch_group, layout.branch_groups
        self.shard = layout.of(rank).shard

    def share(self, tensor: Tensor) -> None:
        """Broadcasts the noise to all ranks."""
        dist.broadcast(tensor, 0)

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of the branch groups, by a handle that is waited for."""
        slots = [torch.empty_like(tensor) for _ in range(self.world_size)]
        self.wait(dist.all_gather(slots, tensor.contiguous(), group=self.cfg, async_op=True))
        return slots

    def wait(self, work: Any) -> None:
        """Waits for an exchange."""
        work.wait()

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum over the branch groups, in place."""
        dist.all_reduce(tensor, group=self.cfg)
        return tensor

    def broadcast(self, tensor: Tensor, src: int = 0) -> Tensor:
        """Overwrites ``tensor`` with that of a branch group, in place."""
        dist.broadcast(tensor, self.layout.peers(self.number)[src], group=self.cfg)
        return tensor

    def gather_shards(self, tensor: Tensor) -> Tensor:
        """The shards of this branch, together."""
        return gathered(tensor, self.branch)


def gathered(part: Tensor, group: Any) -> Tensor:
    """Parts along the first dimension, together."""
    whole = part.new_empty((part.shape[0] * dist.get_world_size(group), *part.shape[1:]))
    dist.all_gather_into_tensor(whole, part.contiguous(), group=group)
    return whole


class SmallDenoiser:
    """Velocities of the whole ``x_t`` or of one shard of it; alone, or together with the other shards."""

    def __init__(self, schedule: Schedule, layout: Layout | None, group: EngineGroup | None) -> None:
        generator = torch.Generator().manual_seed(1)
        self.weights = {name: torch.randn(2, CHANNELS, generator=generator) for name in NAMES}
        self.schedule, self.layout = schedule, layout
        self.shard = 0 if group is None else group.shard
        self.group: Any = None if group is None else group.branch

    def velocity(self, x_t: Tensor, step: int, branch: str, **asked: Any) -> Tensor:
        near, far = self.weights[branch].to(x_t.device)
        layout = self.layout
        shared = layout is not None and layout.shards > 1
        whole = gathered(x_t, self.group) if layout is not None and shared and layout.cut is not None else x_t
        v_t = torch.tanh(whole * near + whole.roll(1, 0) * far + self.schedule.timesteps[step])
        if layout is None or not shared:
            return v_t
        own = v_t.chunk(layout.shards)[self.shard]
        return own if layout.cut is not None else gathered(own, self.group)


def _of(denoiser: Denoiser, request: DenoiseRequest, x_t: Tensor, step: int) -> Tensor:
    cond, uncond = (denoiser.velocity(x_t, step, name) for name in NAMES)
    return _guided(cond, uncond, request.cfg_text_scale)


def _guided(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    return scale * cond + (1 - scale) * uncond


def reference(denoiser: Denoiser, request: DenoiseRequest, x_0: Tensor, group: Group, observe: Observe) -> Tensor:
    """One process evaluates both branches."""
    x_t = x_0
    for step, dt in enumerate(request.schedule.dts):
        x_t = x_t - _of(denoiser, request, x_t, step) * dt
        observe(step, x_t)
    return x_t


def gathering(denoiser: Denoiser, request: DenoiseRequest, x_0: Tensor, group: Any, observe: Observe) -> Tensor:
    """The velocities of the branch groups are gathered; each rank steps its part of ``x_t``."""
    group.share(x_0)
    layout = group.layout
    x_t = layout.part(x_0, group.shard).clone()
    for step, dt in enumerate(request.schedule.dts):
        branch = NAMES[group.rank] if group.rank < len(NAMES) else NAMES[0]
        cond, uncond, *_ = group.all_gather(denoiser.velocity(x_t, step, branch))
        x_t = x_t - _guided(cond, uncond, request.cfg_text_scale) * dt
        observe(step, x_t)
    return x_t if layout.cut is None else group.gather_shards(x_t)


def weight(rank: int, scale: float) -> float:
    """What a branch group multiplies its velocity by; a padding group adds nothing."""
    return (scale, 1 - scale)[rank] if rank < len(NAMES) else 0.0


def summing(denoiser: Denoiser, request: DenoiseRequest, x_0: Tensor, group: Any, observe: Observe) -> Tensor:
    """Each branch group weighs its velocity, and a sum over them is the guided one."""
    group.share(x_0)
    x_t = x_0
    for step, dt in enumerate(request.schedule.dts):
        branch = NAMES[group.rank] if group.rank < len(NAMES) else NAMES[0]
        v_t = group.all_reduce(weight(group.rank, request.cfg_text_scale) * denoiser.velocity(x_t, step, branch))
        x_t = x_t - v_t * dt
        observe(step, x_t)
    return x_t


_START = (Call(BROADCAST, X_T, EVERYBODY, 0),)
_GATHER = (Call(ALL_GATHER, VELOCITY, BRANCHES),)


class Sharded:
    """Two branches, each on half of the ranks, which keep a part of the tokens all along."""

    name = "small, sharded"
    loops: Mapping[str, Loop] = {"reference": reference, "parallel": gathering}
    expects: Mapping[str, str | Exchanges] = {
        "parallel": Exchanges("local", _START, _GATHER, end=(Call(ALL_GATHER, X_T, SHARDS),), direct=True)
    }
    ranks = 4
    cut: ClassVar[int | None] = 0

    def layout(self, world_size: int) -> Layout:
        """Two branch groups."""
        return Layout(2, max(1, world_size // 2), self.cut)

    def branches(self, request: DenoiseRequest) -> tuple[str, ...]:
        """With and without the prompt."""
        return NAMES

    def schedule(self, request: DenoiseRequest) -> Schedule:
        """Evenly spaced steps, all guided."""
        points = torch.linspace(1, 0, request.num_timesteps)
        return Schedule(tuple(points[:-1].tolist()), points[:-1] - points[1:], (True,) * (len(points) - 1))

    def prepare(self, request: DenoiseRequest, options: ModelOptions, rank: int, device: torch.device) -> Prepared:
        """The same weights on every rank, and other noise."""
        layout, schedule = self.layout(dist.get_world_size()), self.schedule(request)
        group = EngineGroup(layout, rank)
        denoiser, alone = SmallDenoiser(schedule, layout, group), SmallDenoiser(schedule, None, None)
        alone.weights = denoiser.weights
        noise = torch.Generator().manual_seed(1000 * request.seed + rank)
        x_0 = torch.randn(TOKENS, CHANNELS, generator=noise).to(device)
        caches = {name: {"weights": weights} for name, weights in denoiser.weights.items()}
        w = weight(group.rank, request.cfg_text_scale)
        sends = (lambda v: w * v) if self.loops["parallel"] is summing else None
        return Prepared(denoiser, x_0, caches, group=group, alone=alone, sends=sends)


class Padded(Sharded):
    """Three groups of ranks for two branches: what the third evaluates is gathered and discarded."""

    name = "small, padded"
    expects: Mapping[str, str | Exchanges] = {"parallel": Exchanges("round_robin", _START, _GATHER, direct=True)}
    ranks = 3
    cut: ClassVar[int | None] = None

    def layout(self, world_size: int) -> Layout:
        """Three branch groups."""
        return Layout(3, max(1, world_size // 3))


class Summing(Sharded):
    """Weighted velocities are summed over branch groups; on three ranks, the third adds nothing."""

    name = "small, summing"
    loops: Mapping[str, Loop] = {"reference": reference, "parallel": summing}
    expects: Mapping[str, str | Exchanges] = {
        "parallel": Exchanges("reduce", _START, (Call(ALL_REDUCE, VELOCITY, BRANCHES),), direct=True)
    }
    ranks = 2
    cut: ClassVar[int | None] = None

    def layout(self, world_size: int) -> Layout:
        """Two branch groups, or three on three ranks."""
        return Layout(3) if world_size == 3 else Layout(2, max(1, world_size // 2))
