"""What a rank does: run one loop of one target, and bring back its trace."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch

from verify.environment.identity import identity
from verify.errors import BadInput
from verify.protocols import Denoiser, Group, Loop
from verify.ranks.group import Alone
from verify.ranks.rank import Rank
from verify.request import DenoiseRequest
from verify.targets.finding import find_target
from verify.targets.loading import load_loop
from verify.targets.protocol import REFERENCE, ModelOptions, Prepared, even, understood
from verify.trace.caches import CacheWatch
from verify.trace.recorder import Recorder, Trace
from verify.trace.window import Window, trace_bytes


@dataclass(frozen=True)
class Plan:
    """What is to be traced.

    Attributes:
        request: what to denoise.
        options: with which network.
        target: whose loops; a name as given to ``--target``.
        loop: one of the target's loops, or empty when ``loop_reference`` is given.
        loop_reference: ``FILE.py:NAME`` or ``PACKAGE.MODULE:NAME`` of a loop of the user's own.
        window: the steps whose ``x_t`` is kept; None for all.
    """

    request: DenoiseRequest
    options: ModelOptions
    target: str = "builtin"
    loop: str = ""
    loop_reference: str | None = None
    window: Window | None = None

    @property
    def loop_name(self) -> str:
        """What the loop is called in reports."""
        return self.loop if self.loop_reference is None else self.loop_reference.rpartition("/")[2]


def trace_loop(rank: Rank, plan: Plan) -> Trace | None:
    """Runs the plan's loop on this rank. The reference runs on rank 0 alone, and the others return None.

    Raises:
        BadInput: the plan cannot be carried out, or the loop breaks its contract.
    """
    alone = plan.loop == REFERENCE
    loop = find_loop(plan)
    rank.status.activity("building the model and its contexts")
    # On every rank, also for the reference: a target may make process groups in it.
    prepared, caches = prepare(rank, plan)
    if alone and rank.rank:
        return None
    request = request_for(plan, prepared, rank)
    group = group_for(plan, prepared, rank)
    recorder = Recorder(prepared.denoiser, group, prepared.x_0, request, caches, rank.status, plan.window)
    kept = None if plan.window is None else plan.window.count(request.schedule.steps)
    rank.expect(trace_bytes(request, prepared.x_0.shape[-1], kept, prepared.x_0.element_size()))

    def run(denoiser: Denoiser, group: Group, observe: object) -> object:
        # The loop may do as it likes with its x_0, but the next loop begins with the same.
        return loop(denoiser, request, prepared.x_0.clone(), group, recorder.observe)

    rank.held.adopt()
    with torch.no_grad(), autocast(plan.options, rank.device):
        final, seconds = recorder.run(run)
    rank.held.restore()  # What follows is computed as before the loop.
    environment = rank.environment() | describe(plan.options) | dict(prepared.environment)
    trace = recorder.trace(plan.loop_name, final, seconds, environment, prepared.followed, prepared.notes, rank.replica)
    return replace(trace, identity=identity(_modules(plan)), settings=recorder.settings.seen())


def _modules(plan: Plan) -> list[str]:
    """The modules that target and loop come from; a target or loop in a file has none."""
    named = (plan.loop_reference or "", plan.target)
    loops = find_target(plan.target).loops.values()
    return [
        *(name.partition(":")[0] for name in named if ":" in name and ".py:" not in name),
        *(str(getattr(loop, "__module__", "")) for loop in loops),
        type(find_target(plan.target)).__module__,
    ]


def request_for(plan: Plan, prepared: Prepared, rank: Rank) -> DenoiseRequest:
    """The request as the loop is given it: with the schedule and branches of the target, on the rank's device."""
    target = find_target(plan.target)
    request = understood(target, plan.request)
    if prepared.followed is not None:
        request = request.resolved(even(prepared.followed, target, "Prepared.followed"))
    return request.on(rank.device)


def group_for(plan: Plan, prepared: Prepared, rank: Rank) -> Group:
    """What the loop sends over: nothing for the reference, else the target's group or the suite's."""
    if plan.loop == REFERENCE:
        return Alone()
    return rank.group if prepared.group is None else prepared.group


def find_loop(plan: Plan) -> Loop:
    """The loop that a plan names."""
    if plan.loop_reference is not None:
        return cast(Loop, load_loop(plan.loop_reference))
    return find_target(plan.target).loops[plan.loop]


def autocast(options: ModelOptions, device: torch.device) -> torch.autocast:
    """The autocast context that the loop runs in."""
    return torch.autocast(device.type, dtype=options.torch_dtype, enabled=options.autocast)


def describe(options: ModelOptions) -> dict[str, object]:
    """The part of a trace's environment that the options decide."""
    return {"dtype": options.dtype, "autocast": options.autocast}


def describe_rank(rank: Rank, options: ModelOptions) -> dict[str, object]:
    """What this rank runs on and how, for documents without traces."""
    return {"rank": rank.rank, **rank.environment(), **describe(options)}


def prepare(rank: Rank, plan: Plan) -> tuple[Prepared, CacheWatch]:
    """What the plan's loops share on this rank, kept for the next loop of the same plan."""
    key = (plan.target, plan.request, plan.options)
    kept = rank.memo.get("prepared")
    if kept is None or kept[0] != key:
        rank.memo.pop("prepared", None)
        prepared = find_target(plan.target).prepare(plan.request, plan.options, rank.rank, rank.device)
        if not isinstance(prepared, Prepared):
            raise BadInput(
                f"--target {plan.target}: prepare returned a {type(prepared).__name__}, expected a Prepared; return "
                "verify.targets.protocol.Prepared(denoiser, x_0)"
            )
        rank.memo["prepared"] = kept = (key, prepared, CacheWatch(prepared.caches))
    return kept[1], kept[2]
