"""Where collectives return before they are over, as over NCCL, the report still names the one in which ranks wait."""

from __future__ import annotations

import time

import pytest
import torch
import torch.distributed as dist
from patience import patient
from pools import shared_pool
from torch import Tensor

from verify.faults import endings, rules
from verify.ranks.failure.failure import RankFailure
from verify.ranks.rank import Rank
from verify.request import DenoiseRequest
from verify.trace.caches import CacheWatch
from verify.trace.recorder import Recorder

TIMEOUT = 1.5
BOUND_RULE = "bound_rule_differs_on_one_rank"
FAULTS = {
    "early_return": endings.early_return,
    "one_rank_compiles": endings.one_rank_compiles,
    BOUND_RULE: rules.bound_rule_differs_on_one_rank,
}


class Queued:
    """A group that queues its collectives, as a device does; what it returns is filled when they are over."""

    def __init__(self, rank: Rank) -> None:
        self.rank, self.world_size = rank.rank, rank.world_size
        self._queued: list[tuple[dist.Work, list[Tensor]]] = []

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        slots = [torch.zeros_like(tensor) for _ in range(self.world_size)]
        self._queue(dist.all_gather(slots, tensor, async_op=True), [*slots, tensor])
        return slots

    def broadcast(self, tensor: Tensor, src: int = 0) -> Tensor:
        self._queue(dist.broadcast(tensor, src, async_op=True), [tensor])
        return tensor

    def _queue(self, work: dist.Work | None, tensors: list[Tensor]) -> None:
        assert work is not None
        self._queued.append((work, tensors))

    def wait(self) -> None:
        for work, _ in self._queued:
            work.wait()


class Still:
    def velocity(self, x_t: Tensor, step: int, branch: str) -> Tensor:
        return torch.zeros_like(x_t)


def run_ahead(rank: Rank, name: str) -> str:
    """Runs a faulty loop whose collectives are waited for at its end only."""
    request, group, x_0 = DenoiseRequest(), Queued(rank), torch.zeros(4, 2)
    recorder = Recorder(Still(), group, x_0, request, CacheWatch({}), rank.status)

    def loop(denoiser: object, watched: object, observe: object) -> None:
        FAULTS[name](denoiser, request, x_0, watched, observe)  # type: ignore[arg-type]
        group.wait()

    recorder.run(loop)
    return "done"


@pytest.mark.parametrize(
    ("name", "step", "waits", "blamed"),
    [
        ("early_return", 21, 0, "rank 0 waits in {}, which rank 1 never joined (rank 1 has finished)"),
        ("one_rank_compiles", 3, 0, "rank 1 did not finish in time after step 2"),
        (BOUND_RULE, 41, 1, "rank 1 waits in {}, which rank 0 never joined (rank 0 has finished)"),
    ],
)
def test_the_collective_is_named_however_far_the_host_is(name: str, step: int, waits: int, blamed: str) -> None:
    with pytest.raises(RankFailure) as caught:
        shared_pool(2).run(run_ahead, name, timeout=patient(TIMEOUT))
    found, collective = caught.value.awaited, f"all_gather 1 of step {step}"
    assert found is not None
    assert (found.collective, found.waiting, found.missing) == (collective, (waits,), (1 - waits,))
    assert caught.value.cause == blamed.format(collective)
    (there,) = [report for report in caught.value.reports if report.rank == waits]
    # It stands behind its last step, or there would be nothing to find out.
    assert (there.state, there.step, there.activity) == ("hung", 48, "")


def keep_going(rank: Rank) -> None:
    """Calls one gather after the other, as a loop does that is only slow, and rank 1 slower than rank 0."""
    for step in range(10_000):
        rank.status.collective("all_gather", 1, step)
        time.sleep(0.02 + 0.05 * rank.rank)


def test_of_ranks_that_are_only_slow_none_is_said_to_be_missing() -> None:
    with pytest.raises(RankFailure) as caught:
        shared_pool(2).run(keep_going, timeout=1.0)
    assert [report.state for report in caught.value.reports] == ["hung", "hung"]
    assert caught.value.awaited is None
    assert "did not finish in time" in caught.value.cause
