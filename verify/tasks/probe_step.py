"""One step of a loop under the magnifying glass.

The loop is run again up to the step in question. There every rank evaluates *every* branch with its own network, so
that ranks can be compared although the loop gives each of them another branch; every operator is logged with a hash of
what goes in and what comes out. Hashes locate; that bytes differ has been proved before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from verify.bits import bits_of
from verify.dispatch import OperatorMode
from verify.protocols import Denoiser, Group, State, SummingGroup
from verify.ranks.rank import Rank
from verify.tasks.stage import Plan, Stage
from verify.trace.latents import packed
from verify.trace.listener import HeardDenoiser, HeardGroup, Listener
from verify.trace.network import networks_of


@dataclass(frozen=True)
class Operator:
    """One operator call.

    Attributes:
        name: as PyTorch names it, e.g. ``aten::mm``.
        module: the innermost module it ran in, as the model names it; empty outside any.
        inputs: a hash of each tensor that goes in.
        outputs: a hash of each tensor that comes out.
    """

    name: str
    module: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass
class StepProbe:
    """What one rank did in one step.

    Attributes:
        x_t: what the branches were evaluated at; None if this rank evaluated none.
        own: the branches that the loop asked this rank for, in order.
        velocities: every branch's velocity by this rank's network.
        operators: every branch's operators.
        sent: what it put into each all_gather.
        gathered: what it got from each all_gather.
        summed: what it put into each all_reduce, and what it got.
        received: the source and the tensor of the last broadcast after the last evaluation or gather; None without one.
        dt: the step size that the request's schedule has for this step.
        rest: the operators after the last evaluation or gather: combine and Euler step.
        after: the new ``x_t``.
    """

    x_t: Tensor | None = None
    own: list[str] = field(default_factory=list)
    velocities: dict[str, Tensor] = field(default_factory=dict)
    operators: dict[str, list[Operator]] = field(default_factory=dict)
    sent: list[Tensor] = field(default_factory=list)
    gathered: list[list[Tensor]] = field(default_factory=list)
    summed: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    received: tuple[int, Tensor] | None = None
    dt: Tensor | None = None
    rest: list[Operator] = field(default_factory=list)
    after: Tensor | None = None


class _Enough(BaseException):
    """Ends the loop after the step in question; no loop should catch it."""


def probe_step(rank: Rank, plan: Plan, step: int) -> StepProbe | None:
    """Runs the plan's loop up to and including ``step`` and brings back what happened in it.

    The reference runs on rank 0 alone; the others return None.
    """
    stage = Stage.of(rank, plan)
    if not stage.takes_part:
        return None
    probe = _Probe(stage.request.branches, step)
    if step < len(stage.request.schedule.dts):
        probe.found.dt = stage.request.schedule.dts[step].clone()
    denoiser, group = HeardDenoiser(stage.prepared.denoiser, probe), HeardGroup(stage.group, probe)
    with stage.arithmetic(), probe.resting(), suppress(_Enough):
        stage.play(denoiser, group, probe.observe)
    return probe.found


class _Probe(Listener):
    """Stands where a recorder would, and looks at one step only."""

    def __init__(self, branches: tuple[str, ...], step: int) -> None:
        self.found = StepProbe()
        self._branches = branches
        self._step = step
        self._done = 0
        self._rest = ExitStack()

    @property
    def _active(self) -> bool:
        """Whether the loop is in the step in question."""
        return self._done == self._step

    @property
    def step_now(self) -> int:
        """The step that the loop is in."""
        return self._done

    def observe(self, step: int, x_t: Tensor, state: State = None) -> None:
        """Counts steps; after the one in question, the loop has done its work."""
        self._end_if_done()
        if self._active:
            self._pause()
            self.found.after = packed(x_t).detach().clone()
        self._done += 1
        self._end_if_done()
        self._resume()

    def _end_if_done(self) -> None:
        """Ends the loop at each of its calls: one that swallows every exception may go on after the first."""
        if self._done > self._step:
            raise _Enough

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Logs operators between evaluations and collectives while the block runs."""
        self._resume()
        try:
            yield
        finally:
            self._pause()

    def _pause(self, anew: bool = False) -> None:
        """An evaluation, a collective or the end begins; ``anew``: what was logged so far came before it."""
        self._rest.close()
        if anew:
            self.found.rest.clear()
            self.found.received = None

    def _resume(self) -> None:
        """It is over."""
        if self._active:
            self._rest.enter_context(logged(self.found.rest))

    def evaluate(self, denoiser: Denoiser, x_t: Tensor, step: int, branch: str) -> Tensor:
        self._end_if_done()
        if not self._active:
            return denoiser.velocity(x_t, step, branch)
        self._pause(anew=True)
        found = self.found
        if found.x_t is None:
            found.x_t = packed(x_t).detach().clone()
        found.own.append(branch)
        result: Tensor | None = None
        for each in self._branches:
            if each not in found.velocities or each == branch:
                operators: list[Operator] = []
                with logged(operators, next(networks_of(denoiser), None)):
                    # What replays a recorded pass shows no operators; what it was recorded from has the same bits.
                    velocity = getattr(denoiser, "eager", denoiser).velocity(x_t, step, each)
                if each == branch:
                    result = velocity
                found.velocities[each], found.operators[each] = packed(velocity).detach().clone(), operators
        self._resume()
        assert result is not None
        return result

    def all_gather(self, group: Group, tensor: Tensor) -> list[Tensor]:
        self._end_if_done()
        self._pause(anew=True)
        gathered = group.all_gather(tensor)
        if self._active:
            self.found.sent.append(tensor.detach().clone())
            self.found.gathered.append([slot.detach().clone() for slot in gathered])
        self._resume()
        return gathered

    def all_reduce(self, group: SummingGroup, tensor: Tensor) -> Tensor:
        self._end_if_done()
        self._pause(anew=True)
        sent = tensor.detach().clone()
        total = group.all_reduce(tensor)
        if self._active:
            self.found.summed.append((sent, total.detach().clone()))
        self._resume()
        return total

    def broadcast(self, group: Group, tensor: Tensor, src: int) -> Tensor:
        self._end_if_done()
        self._pause()
        group.broadcast(tensor, src)
        if self._active:
            self.found.received = src, tensor.detach().clone()
        self._resume()
        return tensor


@contextmanager
def logged(operators: list[Operator], model: Any = None) -> Iterator[None]:
    """Appends every operator that runs in the block, with the module of ``model`` it runs in."""
    with current_module(model) as modules, _Log(operators, modules):
        yield


class _Log(OperatorMode):
    """Appends what each operator reads and writes."""

    def __init__(self, operators: list[Operator], modules: list[str]) -> None:
        super().__init__()
        self._operators, self._modules = operators, modules

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = _hashes((args, kwargs))  # Before the call: it may write to them.
        result = func(*args, **(kwargs or {}))
        outputs = _hashes(result)
        # A view computes nothing: whoever reads it is the one to name.
        if outputs and not getattr(func, "is_view", False):
            self._operators.append(Operator(func.name(), self._modules[-1] if self._modules else "", inputs, outputs))
        return result


@contextmanager
def current_module(model: Any) -> Iterator[list[str]]:
    """The names of the modules that are running, outermost first."""
    running: list[str] = []
    if not isinstance(model, nn.Module):
        yield running
        return
    names = {id(module): name for name, module in model.named_modules()}

    def enter(module: nn.Module, inputs: Any) -> None:
        running.append(names.get(id(module), type(module).__name__))

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        running.pop()

    hooks: list[AbstractContextManager[Any]] = [
        nn.modules.module.register_module_forward_pre_hook(enter),
        nn.modules.module.register_module_forward_hook(leave, always_call=True),
    ]
    with hooks[0], hooks[1]:
        yield running


def _hashes(tree: Any) -> tuple[int, ...]:
    found: list[int] = []
    _walk(tree, lambda tensor: found.append(hash_of(tensor)))
    return tuple(found)


def _walk(tree: Any, visit: Callable[[Tensor], None]) -> None:
    if isinstance(tree, Tensor):
        visit(tree)
    elif isinstance(tree, (list, tuple)):
        for item in tree:
            _walk(item, visit)
    elif isinstance(tree, dict):
        for item in tree.values():
            _walk(item, visit)


def hash_of(tensor: Tensor) -> int:
    """Sums the bits, each weighted by a number made of its index: unlike an XOR it sees what is swapped or doubled."""
    if hasattr(tensor, "to_local"):
        tensor = tensor.to_local()
    if not tensor.numel() or tensor.is_meta:
        return 0
    if tensor.dtype is torch.bool:
        tensor = tensor.to(torch.uint8)
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    bits = bits_of(tensor.detach()).flatten().to(torch.int64)
    places = torch.arange(1, len(bits) * 2, 2, device=bits.device) * 0x9E3779B97F4A7C1
    return int(((bits ^ (bits >> 7)) * (places ^ (places >> 29))).sum())
