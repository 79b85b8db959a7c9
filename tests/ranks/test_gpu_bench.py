"""The benchmark on real GPUs: replayed forward passes have the eager ones' bits, and recording adds no host wait."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from verify.bench.comparison import Comparison
from verify.bench.overhead import Overhead
from verify.bench.points import Point, measure
from verify.bench.syncs import syncs_in_loop
from verify.ranks.plan import place
from verify.ranks.rank import Rank
from verify.request import DenoiseRequest
from verify.runner.job import Job
from verify.runner.run import pool_for
from verify.targets.protocol import REFERENCE, ModelOptions
from verify.tasks.stage import Plan, Stage

pytestmark = [pytest.mark.gpu, pytest.mark.gate]

REQUEST = DenoiseRequest(num_timesteps=10)
CUDA = Job(request=REQUEST, options=ModelOptions(autocast=True), device="cuda")


def test_loops_over_cuda_graphs_are_timed_beside_eager_ones() -> None:
    (point,) = measure(Comparison, [Point(CUDA, 2, graph=True)])
    assert point["notes"] == [note for note in point["notes"] if not note.startswith("CUDA graphs: ")]
    assert list(point["loops"]) == ["reference", "broadcast", "local", "broadcast+graph", "local+graph"]
    assert point["forward"]["replay_s"] > 0


@pytest.mark.parametrize("backend", [pytest.param("nccl", marks=pytest.mark.gpu(count=2)), "gloo"])
def test_recording_adds_no_host_wait(backend: str) -> None:
    job = replace(CUDA, backend=backend)
    (point,) = measure(Overhead, [Point(job, 1)])
    for loop in point["loops"].values():
        assert loop["syncs"]["recorded"] == loop["syncs"]["bare"]
        if backend == "nccl":  # gloo moves tensors through the CPU, and waits for that.
            assert loop["syncs"]["bare"] == [{}, {}]


def wait_once(rank: Rank, plan: Plan) -> dict[str, int] | None:
    """Counts in a loop that waits in its first evaluation."""
    prepared = Stage.of(rank, plan).prepared
    velocity = prepared.denoiser.velocity

    def waiting(x_t: torch.Tensor, step: int, branch: str) -> torch.Tensor:
        if step == 0:
            x_t.sum().item()
        return velocity(x_t, step, branch)

    prepared.denoiser.velocity = waiting  # type: ignore[method-assign]
    try:
        return syncs_in_loop(rank, plan, False)
    finally:
        rank.memo.pop("prepared", None)


def test_a_wait_inside_the_loop_is_counted() -> None:
    plan = Plan(REQUEST, ModelOptions(autocast=True), loop=REFERENCE)
    pool = pool_for(place(1, "cuda").spec)
    assert pool.run(syncs_in_loop, plan, False) == [{}]
    (counted,) = pool.run(wait_once, plan)
    assert sum(counted.values()) == 2  # One for each branch of the first step.
