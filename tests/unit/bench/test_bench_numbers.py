"""The benchmark's arithmetic: intervals, sentences, budgets, spans, limits, summaries."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from verify.bagel.config import preset
from verify.bench.budget import Budget
from verify.bench.ceiling import forward_flops, forwards_in_turn
from verify.bench.statistics import outcome, paired_ratio, sentence, spread
from verify.bench.stopwatch import COMBINE, FORWARD, Stopwatch, Timed
from verify.bench.summary import summarise
from verify.bench.syncs import waiting_calls
from verify.bench.tasks import Timing
from verify.loops import LOOPS
from verify.ranks.group import Alone
from verify.request import DenoiseRequest
from verify.schedule import ALL_GATHER, BROADCAST, Schedule
from verify.trace.listener import HeardDenoiser, HeardGroup

SCHEDULE = Schedule.of(6, 3.0, (0.5, 1.0))  # 5 steps, 4 of them guided.
TWO = ("gen", "text")


# An interval between order statistics: (pairs, k-th least and greatest, confidence) by the binomial distribution.
@pytest.mark.parametrize(
    ("n", "k", "confidence"),
    [(1, 1, 0.0), (4, 1, 0.875), (5, 1, 0.9375), (6, 1, 0.96875), (9, 2, 0.9609375), (10, 2, 0.978515625),
     (20, 6, 0.95861053466796875)],
)  # fmt: skip
def test_the_interval_is_exact(n: int, k: int, confidence: float) -> None:
    ratio = paired_ratio([float(i) for i in range(1, n + 1)], [1.0] * n)
    assert (ratio["low"], ratio["high"]) == (k, n + 1 - k)
    assert ratio["confidence"] == pytest.approx(confidence, abs=1e-12)
    assert ratio["pairs"] == n


def test_a_drift_cancels_in_pairs() -> None:
    ratio = paired_ratio([2.0, 4.0, 8.0, 16.0, 32.0, 64.0], [1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    assert (ratio["ratio"], ratio["low"], ratio["high"]) == (2.0, 2.0, 2.0)


def test_the_interval_holds_the_median_as_often_as_it_says() -> None:
    draws = torch.empty(4000, 10).exponential_(generator=torch.Generator().manual_seed(0))
    held = sum(
        ratio["low"] <= 0.6931 <= ratio["high"] for row in draws.tolist() if (ratio := paired_ratio(row, [1.0] * 10))
    )
    assert 0.97 < held / 4000 < 0.99


@pytest.mark.parametrize(
    ("ratio", "shown", "said"),
    [
        ({"ratio": 1.25, "low": 1.2, "high": 1.3, "pairs": 10, "confidence": 0.97}, "win",
         "b: net win of 20.00 % ± 3.33 over a"),
        ({"ratio": 0.8, "low": 0.75, "high": 0.9, "pairs": 10, "confidence": 0.97}, "loss",
         "b: net loss of 25.00 % ± 13.89 against a"),
        ({"ratio": 1.001, "low": 0.998, "high": 1.002, "pairs": 10, "confidence": 0.97}, "none",
         "no measurable difference between b and a (within ± 0.20 %)"),
        ({"ratio": 1.25, "low": 1.0, "high": 1.3, "pairs": 10, "confidence": 0.97}, "none",
         "no measurable difference between b and a (within ± 23.08 %)"),
        ({"ratio": 2.0, "low": 2.0, "high": 2.0, "pairs": 4, "confidence": 0.87}, "too few",
         "too few pairs (4) to say whether b is faster than a"),
        ({"ratio": 1.25, "low": 1.25, "high": 1.25, "pairs": 5, "confidence": 0.9375}, "win",
         "b: net win of 20.00 % ± 0.00 over a, at 94 % confidence"),
    ],
)  # fmt: skip
def test_a_sentence_says_no_more_than_the_interval(ratio: dict[str, float], shown: str, said: str) -> None:
    assert outcome(ratio) == shown
    assert sentence(ratio, "b", "a") == said


def test_a_spread_keeps_its_values() -> None:
    assert spread([3.0, 1.0, 2.0]) == {"p50": 2.0, "min": 1.0, "p100": 3.0, "values": [3.0, 1.0, 2.0]}


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_budget_ends_in_time() -> None:
    clock = Clock()
    budget = Budget(60.0, clock)
    assert budget.allows(50.0)
    assert not budget.allows(59.0)  # It may take a little longer this time.
    clock.now += 50.0
    assert budget.left == 10.0
    assert budget.allows(9.0)
    clock.now += 11.0
    assert budget.left == 0.0
    assert not budget.allows(0.0)


def test_shares_are_equal_and_what_one_leaves_the_others_have() -> None:
    clock = Clock()
    budget = Budget(60.0, clock)
    assert budget.share(3).left == pytest.approx(20.0)
    clock.now += 10.0
    assert budget.share(2).left == pytest.approx(25.0)
    assert Budget().share(3).allows(1e9)


def test_forward_passes_of_ranks_that_share_a_gpu_take_turns() -> None:
    apart, shared = ("cuda:0", "cuda:1"), ("cuda:0", "cuda:0")
    count = {
        (kind, devices): forwards_in_turn(kind, SCHEDULE, TWO, devices)
        for kind in ("reference", "broadcast", "local") for devices in (apart, shared)
    }  # fmt: skip
    assert SCHEDULE.guided == (True,) * 4 + (False,)
    assert {count["reference", devices] for devices in (apart, shared)} == {2 * 4 + 1}
    assert count["broadcast", apart] == count["local", apart] == 4 + 1
    assert count["broadcast", shared] == 2 * 4 + 1  # Outside the interval rank 0 alone evaluates,
    assert count["local", shared] == 2 * 4 + 2  # or every rank for itself.
    assert forwards_in_turn("local", SCHEDULE, TWO, ("cpu", "cpu")) == 4 + 1


def test_three_ranks_on_two_gpus_wait_for_the_busier() -> None:
    devices = ("cuda:0", "cuda:1", "cuda:0")
    assert forwards_in_turn("local", SCHEDULE, ("gen", "text", "img"), devices) == 2 * 4 + 2


def test_operations_of_a_forward_pass_by_hand() -> None:
    config = preset("tiny").config
    rows, tokens = 6, 4
    by_hand = 0
    for inputs, outputs in ((64, 64), (64, 32), (64, 32), (64, 64), (64, 128), (64, 128), (128, 64)):
        by_hand += 2 * rows * inputs * outputs * config.layers
    by_hand += 2 * 2 * rows * (rows + 10) * 64 * config.layers  # Scores and their product with the values.
    by_hand += 2 * 2 * tokens * 64 * 16  # Into the network and out of it.
    assert forward_flops(config, tokens, 10) == by_hand


class Ticking(Stopwatch):
    """Every moment is one second after the one before it."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self._ticks = itertools.count(0.0)

    def now(self) -> float:
        return next(self._ticks)


class Still:
    def velocity(self, x_t: torch.Tensor, step: int, branch: str) -> torch.Tensor:
        return torch.zeros_like(x_t)


@pytest.mark.parametrize("kind", ["reference", "local", "broadcast", "round_robin"])
def test_a_combine_lasts_from_the_last_velocity_to_what_follows(kind: str) -> None:
    request = DenoiseRequest(height=32, width=32, num_timesteps=6, cfg_text_scale=1.0)
    watch = Ticking()
    loop = LOOPS[kind]
    timed = Timed(watch)
    loop(HeardDenoiser(Still(), timed), request, torch.zeros(4, 16), HeardGroup(Alone(), timed), timed.observe)
    spans = watch.seconds()
    assert spans[FORWARD] == [1.0] * 5
    assert spans[COMBINE] == [1.0] * 5
    assert len(spans[BROADCAST]) == {"reference": 0, "local": 1, "round_robin": 1, "broadcast": 6}[kind]
    assert spans[ALL_GATHER] == []


def timing(total: float, forward: float, gather: list[float], sent: list[float], combine: float = 0.0) -> Timing:
    spans = {FORWARD: [forward], ALL_GATHER: gather, BROADCAST: sent, COMBINE: [combine]}
    return Timing(total, spans)


def summary(**timings: list[list[Timing]]) -> dict[str, Any]:
    forward = {"forward_s": 0.2, "flops": 1e9, "matmul_flops_per_s": 1e10, "ratio": 2.0}
    named = {name.replace("_graph", "+graph"): turns for name, turns in timings.items()}
    kinds = {"broadcast": "broadcast", "local": "local", "reference": "reference"}
    devices = ("cuda:0", "cuda:0")
    return summarise(named, kinds, SCHEDULE, TWO, devices, forward | {"replay_s": 0.15})


LOCAL = [[timing(10.0, 6.0, [1.0, 2.0], [0.5]), timing(9.0, 5.0, [3.0, 1.0], [0.25], 0.5)]] * 6


def test_the_shorter_span_is_the_collective_and_the_rest_of_the_longer_is_idleness() -> None:
    parts = summary(local=LOCAL)["loops"]["local"]["parts"]
    assert parts["all_gather"] == [2.0, 2.0]
    assert parts["broadcast"] == [0.25, 0.25]
    assert parts["idle"] == [1.0 + 0.25, 2.0]
    assert parts["combine"] == [0.0, 0.5]
    assert parts["rest"] == [10 - 6 - 3 - 0.5, 9 - 5 - 4 - 0.25 - 0.5]


def test_the_limit_is_the_forward_passes_at_the_ceiling_and_the_gathers() -> None:
    local = summary(local=LOCAL)["loops"]["local"]
    assert local["forwards_in_turn"] == 10
    assert local["limit_s"] == pytest.approx(10 * 0.1 + 2.0)
    assert local["over_limit"] == pytest.approx(10.0 / 3.0)


def test_one_broadcast_against_one_step() -> None:
    sent = [0.5, 0.1, 0.2, 0.2, 0.2, 0.3]
    made = summary(broadcast=[[timing(10.0, 6.0, [1.0], sent), timing(10.0, 6.0, [1.0], sent)]] * 5, local=LOCAL)
    assert made["loops"]["broadcast"]["broadcast_share_of_step"] == pytest.approx(0.2 / 2.0)
    assert made["loops"]["local"]["broadcast_share_of_step"] == 0.0  # One before the loop is none of its steps'.


def alike(total: float) -> list[list[Timing]]:
    return [[timing(total, 1.0, [], []), timing(total, 1.0, [], [])]] * 6


def test_what_shared_gpus_show_is_said_to_be_no_evidence() -> None:
    made = summary(broadcast=alike(2.0), local=alike(1.0))
    assert made["sentences"][0] == (
        "local: net win of 50.00 % ± 0.00 over broadcast (2 ranks share 1 GPU: no evidence about separate GPUs)"
    )
    with_graphs = summary(broadcast=alike(2.0), local=alike(1.0), broadcast_graph=alike(0.5), local_graph=alike(0.5))
    # All but the forward pass that one rank made while the others were idle.
    others = [said for said in with_graphs["sentences"] if not said.startswith("one forward pass on rank 0 alone")]
    assert len(others) == 4
    assert all(said.endswith(" (2 ranks share 1 GPU: no evidence about separate GPUs)") for said in others)


def test_what_graphs_change_is_said() -> None:
    made = summary(broadcast=alike(2.0), local=alike(1.0), broadcast_graph=alike(0.5), local_graph=alike(0.5))
    assert set(made["ratios"]) == {
        "broadcast/local", "broadcast/broadcast+graph", "local/local+graph", "broadcast+graph/local+graph"
    }  # fmt: skip
    said = [s.removesuffix(" (2 ranks share 1 GPU: no evidence about separate GPUs)") for s in made["sentences"]]
    assert said == [
        "local: net win of 50.00 % ± 0.00 over broadcast",
        "one forward pass on rank 0 alone: 200.00 ms eager, 150.00 ms replayed from a CUDA graph, so 25 % of the eager "
        "one is waiting for launches",
        "broadcast replaying CUDA graphs: net win of 75.00 % ± 0.00 over broadcast eager",
        "local replaying CUDA graphs: net win of 50.00 % ± 0.00 over local eager",
        "both replaying CUDA graphs, no measurable difference between local and broadcast (within ± 0.00 %); "
        "eagerly, a net win",
    ]


def test_a_turn_that_was_cut_short_pairs_what_it_has() -> None:
    made = summary(broadcast=alike(2.0), local=alike(1.0)[:5])
    assert made["ratios"]["broadcast/local"]["pairs"] == 5


def test_nothing_measured_yet_is_no_error() -> None:
    assert summary(broadcast=[], local=[])["loops"] == {}


def test_calls_that_wait_are_told_from_those_that_do_not() -> None:
    waiting = ["cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cuStreamSynchronize",
               "cudaMemcpy", "cuMemcpyDtoH_v2", "cuCtxSynchronize"]  # fmt: skip
    others = ["cudaLaunchKernel", "cudaMemcpyAsync", "Memcpy DtoH (Device -> Pageable)", "cudaEventQuery",
              "cudaEventRecord", "cudaStreamWaitEvent", "", "aten::copy_"]  # fmt: skip
    assert waiting_calls([*waiting, *others, "cudaMemcpy"]) == dict.fromkeys(sorted(waiting), 1) | {"cudaMemcpy": 2}
