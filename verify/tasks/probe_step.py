"""One step of a loop under the magnifying glass.

The loop is run again up to the step in question. There every rank evaluates *every* branch with its own network, so
that ranks can be compared although the loop gives each of them another branch; every operator is logged with a hash of
what goes in and what comes out. Hashes locate; that bytes differ has been proved before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._debug_mode import DebugMode

from verify.bits import bits_of
from verify.protocols import Denoiser, Group
from verify.ranks.rank import Rank
from verify.targets.protocol import REFERENCE
from verify.tasks.trace_loop import Plan, autocast, find_loop, group_for, prepare, request_for
from verify.trace.watched import WrappedGroup


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
    prepared, caches = prepare(rank, plan)
    if plan.loop == REFERENCE and rank.rank:
        return None
    loop, request = find_loop(plan), request_for(plan, prepared, rank)
    probe = _Probe(prepared.denoiser, group_for(plan, prepared, rank), request.branches, step)
    if step < len(request.schedule.dts):
        probe.found.dt = request.schedule.dts[step].clone()
    with torch.no_grad(), autocast(plan.options, rank.device), probe.resting():
        try:
            loop(probe.denoiser, request, prepared.x_0.clone(), probe.group, probe.observe)
        except _Enough:
            pass
        finally:
            caches.records()  # What the loop wrote to its contexts is put right for the next one.
    return probe.found


class _Probe:
    """Stands where a recorder would, and looks at one step only."""

    def __init__(self, denoiser: Denoiser, group: Group, branches: tuple[str, ...], step: int) -> None:
        self.found = StepProbe()
        self.denoiser: Denoiser = _ProbedDenoiser(self, denoiser)
        self.group: Group = _ProbedGroup(self, group)
        self.branches = branches
        self._step = step
        self._done = 0
        self._rest = ExitStack()

    @property
    def active(self) -> bool:
        """Whether the loop is in the step in question."""
        return self._done == self._step

    def observe(self, step: int, x_t: Tensor) -> None:
        """Counts steps; after the one in question, the loop has done its work."""
        if self.active:
            self.pause()
            self.found.after = x_t.detach().clone()
            raise _Enough
        self._done = step + 1
        self.resume()

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Logs operators between evaluations and collectives while the block runs."""
        self.resume()
        try:
            yield
        finally:
            self.pause()

    def pause(self, anew: bool = False) -> None:
        """An evaluation, a collective or the end begins; ``anew``: what was logged so far came before it."""
        self._rest.close()
        if anew:
            self.found.rest.clear()
            self.found.received = None

    def resume(self) -> None:
        """It is over."""
        if self.active:
            self._rest.enter_context(logged(self.found.rest))


class _ProbedDenoiser:
    def __init__(self, probe: _Probe, denoiser: Denoiser) -> None:
        self._probe, self._denoiser = probe, denoiser

    def __getattr__(self, name: str) -> Any:
        return getattr(self._denoiser, name)

    def velocity(self, x_t: Tensor, step: int, branch: str) -> Tensor:
        if not self._probe.active:
            return self._denoiser.velocity(x_t, step, branch)
        self._probe.pause(anew=True)
        found = self._probe.found
        if found.x_t is None:
            found.x_t = x_t.detach().clone()
        found.own.append(branch)
        result: Tensor | None = None
        for each in self._probe.branches:
            if each not in found.velocities or each == branch:
                operators: list[Operator] = []
                with logged(operators, getattr(self._denoiser, "model", None)):
                    velocity = self._denoiser.velocity(x_t, step, each)
                if each == branch:
                    result = velocity
                found.velocities[each], found.operators[each] = velocity.detach().clone(), operators
        self._probe.resume()
        assert result is not None
        return result


class _ProbedGroup(WrappedGroup):
    def __init__(self, probe: _Probe, group: Group) -> None:
        super().__init__(group)
        self._probe = probe

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        self._probe.pause(anew=True)
        gathered = self._group.all_gather(tensor)
        if self._probe.active:
            self._probe.found.sent.append(tensor.detach().clone())
            self._probe.found.gathered.append([slot.detach().clone() for slot in gathered])
        self._probe.resume()
        return gathered

    def broadcast(self, tensor: Tensor, src: int = 0) -> Tensor:
        self._probe.pause()
        self._group.broadcast(tensor, src)
        if self._probe.active:
            self._probe.found.received = src, tensor.detach().clone()
        self._probe.resume()
        return tensor


@contextmanager
def logged(operators: list[Operator], model: Any = None) -> Iterator[None]:
    """Appends every operator that runs in the block, with the module of ``model`` it runs in."""
    with ExitStack() as stack:
        modules = stack.enter_context(_current_module(model))

        def before(func: Any, types: Any, args: Any, kwargs: Any, call: Any) -> dict[str, Any]:
            return {"inputs": _hashes((args, kwargs))}

        def after(func: Any, types: Any, args: Any, kwargs: Any, result: Any) -> dict[str, Any]:
            if func.is_view:  # It computes nothing: whoever reads the view is the one to name.
                return {}
            return {"outputs": _hashes(result), "module": modules[-1] if modules else "", "name": func.name()}

        stack.enter_context(DebugMode.dispatch_hooks(log_hook=after, pre_log_hook=before))
        mode = stack.enter_context(DebugMode(record_output=False))
        yield
    for call in mode.operators:
        if call.log and "outputs" in call.log and call.log["outputs"]:
            said = call.log
            operators.append(Operator(said["name"], said["module"], said.get("inputs", ()), said["outputs"]))


def warm_up() -> None:
    """Imports what the first use of DebugMode imports: seconds, and once for each rank that has to do it itself."""
    with logged([]):
        torch.ones(1).neg()


@contextmanager
def _current_module(model: Any) -> Iterator[list[str]]:
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
    """Sums the bits, each weighted by an odd number of its place: unlike an XOR it sees what is swapped or doubled."""
    if not tensor.numel() or tensor.is_meta:
        return 0
    if tensor.dtype is torch.bool:
        tensor = tensor.to(torch.uint8)
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    bits = bits_of(tensor.detach()).flatten().to(torch.int64)
    places = torch.arange(1, len(bits) * 2, 2, device=bits.device) * 0x9E3779B97F4A7C1
    return int(((bits ^ (bits >> 7)) * (places ^ (places >> 29))).sum())
