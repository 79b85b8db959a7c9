"""Runs one loop of one target on this rank, and brings back its trace."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from verify.environment.identity import identity
from verify.expected import Exchanges
from verify.layout import Layout
from verify.protocols import Denoiser, Group
from verify.ranks.rank import Rank
from verify.targets.finding import find_target
from verify.targets.protocol import REFERENCE, Prepared
from verify.tasks.stage import Plan, Stage, describe_options
from verify.trace.caches import CacheWatch
from verify.trace.generators import BEFORE_PREPARING, GeneratorWatch
from verify.trace.latents import Packing, packed
from verify.trace.recorder import Recorder
from verify.trace.sampling import SamplerWatch
from verify.trace.share import Share
from verify.trace.state import GROUPS, Change, StateWatch
from verify.trace.trace import Trace


def trace_loop(rank: Rank, plan: Plan) -> Trace | None:
    """Runs the plan's loop on this rank. The reference runs on rank 0 alone, and the others return None.

    Raises:
        BadInput: the plan cannot be carried out.
    """
    generators = GeneratorWatch(rank.device)
    generators.look(BEFORE_PREPARING)
    stage = Stage.of(rank, plan)
    prepared, request = stage.prepared, stage.request
    # Also on ranks that leave the reference to rank 0: what they held then is what they must hold later.
    state = StateWatch(stage.watched)
    first = _first_state(rank, plan, state)
    if not stage.takes_part:
        return None
    caches = CacheWatch(prepared.caches)
    recorder = Recorder(
        prepared.denoiser,
        stage.group,
        prepared.x_0,
        request,
        caches,
        rank.status,
        plan.window,
        state,
        first,
        prepared.sends,
        SamplerWatch(request.schedule, rank.device, _input_of(prepared), prepared.state, generators),
        Share(packed(prepared.x_0).shape, stage.part, _peers(stage)),
    )
    kept = None if plan.window is None else plan.window.count(request.schedule.steps)
    steps = request.schedule.steps if kept is None else min(kept, request.schedule.steps)
    rank.expect((steps + 2) * packed(prepared.x_0).nbytes)  # Where the loop began and what it returned are kept too.

    def run(denoiser: Denoiser, group: Group, observe: Any) -> Any:
        return stage.play(denoiser, group, observe)

    with stage.arithmetic():
        final, seconds = recorder.run(run)
    rank.held.restore()  # What follows is computed as before the loop.
    environment = rank.environment() | describe_options(plan.options) | dict(prepared.environment)
    trace = recorder.trace(plan.loop_name, final, seconds, environment, prepared.followed, prepared.notes, rank.replica)
    if rank.damage and trace.state is not None:
        lost = Change(GROUPS, rank.damage, None, lasting=True)
        trace = replace(trace, state=replace(trace.state, changes=(lost, *trace.state.changes)))
    if stage.layout is not None and plan.loop != REFERENCE:
        # The group that the loop was handed may be one of several, and knows its own numbers alone.
        trace = replace(trace, rank=rank.rank, world_size=rank.world_size)
    return replace(
        trace,
        identity=identity(_modules(plan)),
        global_rank=rank.global_rank,
        equal_noise=prepared.equal_noise,
        world=rank.group.world_ranks,
    )


def _peers(stage: Stage) -> frozenset[int] | None:
    """Global ranks with which this one shares no branch; None where the target says nothing of it."""
    rank, layout = stage.rank, stage.layout
    if layout is None:
        expects = find_target(stage.plan.target).expects.values()
        if not any(isinstance(each, Exchanges) and each.direct for each in expects):
            return None
        layout = Layout(rank.world_size)
    own = layout.branch_group(rank.rank)
    return frozenset(rank.group.world_ranks[r] for r in range(rank.world_size) if r not in own)


def _input_of(prepared: Prepared) -> Any:
    """What the network is to be given of a packed ``x_t``, packed."""
    declared, packing = prepared.input, Packing.of(prepared.x_0)
    if declared is None or packing is None:
        return declared
    return lambda x_t, step: packed(declared(packing.unpacked(x_t), step))


def _modules(plan: Plan) -> list[str]:
    """The modules that target and loop come from; a target or loop in a file has none."""
    named = (plan.loop_reference or "", plan.target)
    loops = find_target(plan.target).loops.values()
    return [
        *(name.partition(":")[0] for name in named if ":" in name and ".py:" not in name),
        *(str(getattr(loop, "__module__", "")) for loop in loops),
        type(find_target(plan.target)).__module__,
    ]


def _first_state(rank: Rank, plan: Plan, state: StateWatch) -> dict[str, str]:
    """The state before the first loop of this request on this rank: before the reference, where there is one."""
    key = plan.target, plan.request, plan.options
    kept = rank.memo.get("first state")
    if kept is None or kept[0] != key:
        rank.memo["first state"] = kept = (key, state.before())
    found: dict[str, str] = kept[1]
    return found
