"""What the timings of one point say: medians of each part, ratios between loops, the limit, sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from verify.bench.ceiling import forwards_in_turn
from verify.bench.statistics import outcome, paired_ratio, sentence, spread
from verify.bench.stopwatch import COMBINE, FORWARD
from verify.bench.tasks import Timing
from verify.schedule import ALL_GATHER, BROADCAST, Schedule
from verify.targets.protocol import REFERENCE

# A loop whose forward passes are replayed from CUDA graphs.
GRAPH = "+graph"
_IN_WORDS = {"win": "a net win", "loss": "a net loss", "none": "no measurable difference", "too few": "too few pairs"}
PARTS = (FORWARD, ALL_GATHER, BROADCAST, COMBINE, "idle", "rest")

Turns = Sequence[Sequence[Timing]]


def summarise(
    timings: Mapping[str, Turns],
    kinds: Mapping[str, str],
    schedule: Schedule,
    branches: Sequence[str],
    devices: Sequence[str],
    forward: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """``loops``, ``ratios`` and ``sentences`` of one point.

    Args:
        timings: for each loop its turns, and in each turn one timing a rank.
        kinds: which version each loop is; one with ``+graph`` behind its name is the same with replayed forward passes.
        schedule: of the request.
        branches: of the request, in rank order.
        devices: one a rank.
        forward: what :func:`verify.bench.tasks.forward_against_ceiling` measured; without it there is no limit.
    """
    measured = {name: turns for name, turns in timings.items() if turns}
    loops = {name: _loop(turns, schedule.steps) for name, turns in measured.items()}
    if forward is not None:
        for name, loop in loops.items():
            kind = kinds[name.removesuffix(GRAPH)]
            in_turn = forwards_in_turn(kind, schedule, branches, devices)
            loop |= _limit(loop, in_turn, forward)
    pairs = [
        (slower, faster)
        for slower, faster in combinations([name for name in measured if name != REFERENCE], 2)
        if slower.endswith(GRAPH) == faster.endswith(GRAPH) or faster == slower + GRAPH
    ]
    seconds = {name: [max(timing.total for timing in turn) for turn in turns] for name, turns in measured.items()}
    ratios = {f"{slower}/{faster}": _ratio(seconds[slower], seconds[faster]) for slower, faster in pairs}
    shared = "" if _alone(devices) else f" ({_sharing(devices)}: no evidence about separate GPUs)"
    said = [sentence(ratios[f"{s}/{f}"], f, s) + shared for s, f in pairs if not f.endswith(GRAPH)]
    return {"loops": loops, "ratios": ratios, "sentences": [*said, *_with_graphs(ratios, pairs, forward, shared)]}


def _ratio(slower: Sequence[float], faster: Sequence[float]) -> dict[str, float]:
    # One may have been timed once more than the other.
    pairs = min(len(slower), len(faster))
    return paired_ratio(slower[:pairs], faster[:pairs])


def _alone(devices: Sequence[str]) -> bool:
    return devices[0] == "cpu" or len(set(devices)) == len(devices)


def _sharing(devices: Sequence[str]) -> str:
    gpus = len(set(devices))
    return f"{len(devices)} ranks share {gpus} GPU" + "s" * (gpus > 1)


def _with_graphs(
    ratios: Mapping[str, Mapping[str, float]],
    pairs: Sequence[tuple[str, str]],
    forward: Mapping[str, Any] | None,
    shared: str,
) -> list[str]:
    """What replaying CUDA graphs changes: each loop, the forward pass by itself, and the verdict."""
    said = []
    if forward is not None and "replay_s" in forward:
        eager, replay = forward["forward_s"], forward["replay_s"]
        said.append(
            f"one forward pass on rank 0 alone: {1e3 * eager:.2f} ms eager, {1e3 * replay:.2f} ms replayed from a CUDA "
            f"graph, so {100 * max(0.0, 1 - replay / eager):.0f} % of the eager one is waiting for launches"
        )
    for slower, faster in pairs:
        if faster == slower + GRAPH:
            told = sentence(ratios[f"{slower}/{faster}"], f"{slower} replaying CUDA graphs", f"{slower} eager")
            said.append(told + shared)
        elif faster.endswith(GRAPH):
            eager, replayed = (slower.removesuffix(GRAPH), faster.removesuffix(GRAPH)), ratios[f"{slower}/{faster}"]
            before, now = outcome(ratios["/".join(eager)]), outcome(replayed)
            change = "the same eagerly" if before == now else f"eagerly, {_IN_WORDS[before]}"
            told = f"both replaying CUDA graphs, {sentence(replayed, eager[1], eager[0])}; {change}"
            said.append(told + shared)
    return said


def _loop(turns: Turns, steps: int) -> dict[str, Any]:
    """Medians over the turns of each part on each rank.

    A collective ends on no rank before the last has arrived, so the shortest of the ranks' spans is its own cost and
    what a rank spent beyond it is idleness. The combine includes the Euler step.
    """
    ranks = len(turns[0])
    parts: dict[str, list[list[float]]] = {name: [] for name in PARTS}
    shares = []
    for turn in turns:
        collectives = {name: np.array([timing.spans[name] for timing in turn]) for name in (ALL_GATHER, BROADCAST)}
        cost = {name: spans.min(axis=0).sum() if spans.size else 0.0 for name, spans in collectives.items()}
        for name, value in cost.items():
            parts[name].append([value] * ranks)
        waited = sum(spans.sum(axis=1) - cost[name] for name, spans in collectives.items() if spans.size)
        own = {name: np.array([sum(timing.spans[name]) for timing in turn]) for name in (FORWARD, COMBINE)}
        idle = np.broadcast_to(waited, (ranks,))
        total = np.array([timing.total for timing in turn])
        for name, seconds in own.items():
            parts[name].append(list(seconds))
        parts["idle"].append(list(idle))
        parts["rest"].append(list(total - sum(own.values()) - idle - sum(cost.values())))
        # One broadcast against one step; all that a loop makes may be the one before its first step.
        each = collectives[BROADCAST].min(axis=0) if collectives[BROADCAST].size else np.zeros(0)
        shares.append(float(np.median(each)) / (total.max() / steps) if len(each) >= steps else 0.0)
    totals = [max(timing.total for timing in turn) for turn in turns]
    return {
        "seconds": spread(totals),
        "parts": {name: [float(v) for v in np.median(np.array(values), axis=0)] for name, values in parts.items()},
        "broadcast_share_of_step": float(np.median(shares)),
        "step_s": float(np.median(totals) / steps),
    }


def _limit(loop: Mapping[str, Any], in_turn: int, forward: Mapping[str, Any]) -> dict[str, Any]:
    """The least a loop can take: its forward passes one after another at the rate of a large product, and its gathers.

    The gathers of ranks that share a GPU are over gloo, through the CPU, and are counted as measured.
    """
    limit = in_turn * forward["flops"] / forward["matmul_flops_per_s"] + loop["parts"][ALL_GATHER][0]
    return {"forwards_in_turn": in_turn, "limit_s": limit, "over_limit": loop["seconds"]["p50"] / limit}
