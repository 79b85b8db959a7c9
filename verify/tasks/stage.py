"""All that is made ready on a rank before a loop runs. Every task that runs a loop, or a part of one, stands on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from verify.errors import BadInput
from verify.layout import Layout
from verify.protocols import Denoiser, Group, Loop, Observe
from verify.ranks.group import Alone
from verify.ranks.rank import Rank
from verify.request import DenoiseRequest, ResolvedRequest
from verify.schedule import Schedule
from verify.targets.finding import find_target
from verify.targets.loading import load_loop
from verify.targets.protocol import ON_DEVICE, REFERENCE, ModelOptions, Prepared, Target, layout_of, sound, understood
from verify.tasks.padding import PaddingDenoiser
from verify.trace.latents import Latents, each
from verify.trace.window import Window


@dataclass(frozen=True)
class Plan:
    """What is to be run.

    Attributes:
        request: what to denoise.
        options: with which network.
        target: whose loops; a name as given to ``--target``.
        loop: one of the target's loops, or empty when ``loop_reference`` is given.
        loop_reference: ``FILE.py:NAME`` or ``PACKAGE.MODULE:NAME`` of a loop of the user's own.
        window: the steps whose ``x_t`` is kept; None for all.
        fills_memory: whether memory that nothing has written yet holds NaN, where it is taken for a tensor.
    """

    request: DenoiseRequest
    options: ModelOptions
    target: str = "builtin"
    loop: str = ""
    loop_reference: str | None = None
    window: Window | None = None
    fills_memory: bool = False

    @property
    def loop_name(self) -> str:
        """What the loop is called in reports."""
        return self.loop if self.loop_reference is None else self.loop_reference.rpartition("/")[2]


def reference_plan(plan: Plan) -> Plan:
    """The reference of what a plan runs."""
    return replace(plan, loop=REFERENCE, loop_reference=None)


@dataclass(frozen=True)
class Stage:
    """A loop and all that it is given on one rank.

    Attributes:
        rank: this rank.
        plan: what is to be run.
        prepared: the denoiser and initial latent, as the target made them.
        request: the request with the schedule and branches of the target, on the rank's device.
        group: what the loop sends over: nothing for the reference, else the target's group or the suite's.
        loop: the loop itself.
        layout: of the ranks; None where the target says none.
        watched: the denoiser whose state is watched: the target's own, also where the reference has another.
    """

    rank: Rank
    plan: Plan
    prepared: Prepared
    request: ResolvedRequest
    group: Group
    loop: Loop
    layout: Layout | None
    watched: Denoiser

    @classmethod
    def of(cls, rank: Rank, plan: Plan, again: bool = True) -> Stage:
        """Makes everything ready, on every rank: also for the reference, since a target may make process groups.

        ``again``: the target prepares the request anew, so that nothing which an earlier loop left in a denoiser, a
        context or a scheduler meets this one. Without it, what was prepared for the same plan is used once more: for
        benchmarks, which run one loop many times.

        Raises:
            BadInput: the plan cannot be carried out.
        """
        loop = _loop_of(plan)
        rank.status.activity("building the model and its contexts")
        prepared = _prepared(rank, plan, again)
        watched = prepared.denoiser
        target = find_target(plan.target)
        request = understood(target, plan.request)
        if prepared.followed is not None:
            request = request.resolved(sound(prepared.followed, target, "Prepared.followed"))
        group: Group = Alone()
        layout = layout_of(target, rank.world_size)
        if layout is not None:
            _require_cut(layout, prepared.x_0, target)
        if plan.loop == REFERENCE:
            prepared = prepared if prepared.alone is None else replace(prepared, denoiser=prepared.alone)
        else:
            group = rank.group if prepared.group is None else _fitting(prepared.group, rank, plan, layout)
            if layout is not None and layout.pads(rank.rank, len(request.branches)):
                prepared = replace(prepared, denoiser=PaddingDenoiser(prepared.denoiser, request.schedule.guided))
        if plan.options.step_sizes == ON_DEVICE:
            request = request.on(rank.device)
        rank.held.adopt()  # What importing and preparing set is what the loop finds, in this task and the next.
        return cls(rank, plan, prepared, request, group, loop, layout, watched)

    @property
    def takes_part(self) -> bool:
        """Whether this rank runs the loop: the reference runs on rank 0 alone."""
        return self.plan.loop != REFERENCE or self.rank.rank == 0

    def part(self, x_t: Tensor) -> Tensor:
        """What this rank holds of a whole ``x_t`` in the loop: all of it in the reference."""
        if self.layout is None or self.plan.loop == REFERENCE:
            return x_t
        return self.layout.part(x_t, self.layout.of(self.rank.rank).shard)

    @contextmanager
    def arithmetic(self) -> Iterator[None]:
        """The modes that loops run in: without gradients, under autocast and with memory filled where the plan says so.

        A fresh page holds zeros, which a loop that forgets to write a buffer may take for its own. The same request
        judged once more with NaN there gives other bytes. It is not the rule, because a loop that finds NaN everywhere
        shows less of what goes wrong with what it really finds.
        """
        options = self.plan.options
        memory: Any = torch.utils.deterministic
        before = memory.fill_uninitialized_memory
        memory.fill_uninitialized_memory = before or self.plan.fills_memory
        try:
            with torch.no_grad(), torch.autocast(
                self.rank.device.type, dtype=options.torch_dtype, enabled=options.autocast
            ):  # fmt: skip
                yield
        finally:
            memory.fill_uninitialized_memory = before

    def play(self, denoiser: Denoiser, group: Group, observe: Observe, schedule: Schedule | None = None) -> Any:
        """Runs the loop from this rank's initial latent, and returns what it returns.

        Args:
            denoiser: this stage's, or one in its place.
            group: likewise.
            observe: whoever is shown each step.
            schedule: steps to take in place of the request's.
        """
        request = self.request if schedule is None else self.request.resolved(schedule)
        # The loop may do as it likes with its x_0, but the next loop begins with the same.
        return self.loop(denoiser, request, each(self.prepared.x_0, torch.clone), group, observe)


def _require_cut(layout: Layout, x_0: Latents, target: Target) -> None:
    """Checks that the shards of a layout together are the whole.

    Raises:
        BadInput: they are not, or latents of several parts are to be cut.
    """
    if isinstance(x_0, Tensor):
        layout.require_parts(x_0)
    elif layout.cut is not None:
        raise BadInput(
            f"the layout of target {target.name} cuts latents of several parts, {', '.join(x_0)}, expected one tensor; "
            "leave cut out and show the latents whole"
        )


def _fitting(group: Group, rank: Rank, plan: Plan, layout: Layout | None) -> Group:
    """A target's own group, if all ranks of the run are in it, or those that the layout has with this rank's shard.

    Raises:
        BadInput: they are not: several groups would each have a rank 0, and nothing would compare them.
    """
    if layout is not None and group.world_size == layout.branch_groups:
        if group.rank != layout.of(rank.rank).branch_group:
            raise BadInput.of(
                f"this process's number in the group that target {plan.target} prepared on rank {rank.rank}",
                group.rank,
                f"{layout.of(rank.rank).branch_group}, its branch group in the target's layout",
                "mend the layout or the group",
            )
        return group
    if group.world_size != rank.world_size:
        raise BadInput.of(
            f"the world size of the group that target {plan.target} prepared",
            group.world_size,
            f"{rank.world_size}, all ranks of the run",
            "choose --world-size so, say how ranks are laid out by a method layout of the target, or start several CFG "
            "groups with a launcher",
        )
    return group


def describe_options(options: ModelOptions) -> dict[str, object]:
    """The part of a trace's environment that the options decide."""
    return {"dtype": options.dtype, "autocast": options.autocast}


def describe_rank(rank: Rank, options: ModelOptions) -> dict[str, object]:
    """What this rank runs on and how, for documents without traces."""
    return {"rank": rank.rank, **rank.environment(), **describe_options(options)}


def _loop_of(plan: Plan) -> Loop:
    if plan.loop_reference is not None:
        loop = load_loop(plan.loop_reference)
        # A fault breaks a loop of the target that it is injected into.
        injected = getattr(loop, "in_loops_of", None)
        return cast(Loop, loop if injected is None else injected(find_target(plan.target)))
    return find_target(plan.target).loops[plan.loop]


def _prepared(rank: Rank, plan: Plan, again: bool) -> Prepared:
    key = (plan.target, plan.request, plan.options)
    kept = rank.memo.get("prepared")
    if again or kept is None or kept[0] != key:
        rank.memo.pop("prepared", None)
        prepared = find_target(plan.target).prepare(plan.request, plan.options, rank.rank, rank.device)
        if not isinstance(prepared, Prepared):
            raise BadInput(
                f"--target {plan.target}: prepare returned a {type(prepared).__name__}, expected a Prepared; return "
                "verify.targets.protocol.Prepared(denoiser, x_0)"
            )
        rank.memo["prepared"] = kept = (key, prepared)
    found: Prepared = kept[1]
    return found
