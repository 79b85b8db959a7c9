"""The group: whatever a tensor's layout, its bits arrive; and what a trace counts is what PyTorch counts."""

from __future__ import annotations

import pytest
import tasks
import torch
from pools import shared_pool
from torch import Tensor

from verify.bits import same_bits
from verify.loops import LOOPS
from verify.request import DenoiseRequest
from verify.schedule import ALL_GATHER, BROADCAST
from verify.targets.protocol import REFERENCE, ModelOptions
from verify.tasks.stage import Plan

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool]
# What the two collectives of a loop are called below torch.distributed.
COUNTED = {ALL_GATHER: "c10d.allgather_", BROADCAST: "c10d.broadcast_"}


def rank_distinct(dtype: torch.dtype, shape: tuple[int, ...], world_size: int) -> list[Tensor]:
    """A tensor a rank, of any bytes, NaNs of all payloads and both zeros among them."""
    tensors = []
    for rank in range(world_size):
        generator = torch.Generator().manual_seed(rank)
        size = torch.Size(shape).numel() * torch.empty(0, dtype=dtype).element_size()
        high = 2 if dtype is torch.bool else 256
        values = torch.randint(0, high, (size,), dtype=torch.uint8, generator=generator)
        tensors.append(values.view(dtype).view(shape))
    return tensors


@pytest.mark.parametrize("transposed", [False, True], ids=["dense", "transposed"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_all_gather(dtype: torch.dtype, transposed: bool) -> None:
    sent = rank_distinct(dtype, (3, 5, 7), 3)
    for gathered in shared_pool(3).run(tasks.gathered, sent, transposed):
        assert len(gathered) == 3
        assert all(same_bits(a, b) for a, b in zip(sent, gathered, strict=True))
        assert all(t.is_contiguous() for t in gathered)


@pytest.mark.parametrize("src", [0, 2])
@pytest.mark.parametrize("transposed", [False, True], ids=["dense", "a transposed window"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_broadcast_is_in_place(dtype: torch.dtype, transposed: bool, src: int) -> None:
    sent = rank_distinct(dtype, (5, 7), 3)
    for result, memory, same_object in shared_pool(3).run(tasks.broadcast, sent, transposed, src):
        assert same_bits(result, sent[src])
        assert same_object
        if transposed:  # It was written where it lies, and its frame was not.
            assert same_bits(memory[1:-1, 1:-1].mT.contiguous(), sent[src])
            frame = memory.clone()
            frame[1:-1, 1:-1] = 0
            assert not frame.view(torch.uint8).any()


def test_a_group_of_one_and_tensors_without_elements() -> None:
    (gathered,) = shared_pool(1).run(tasks.gathered, [torch.arange(6).view(2, 3)], True)
    assert [t.tolist() for t in gathered] == [[[0, 1, 2], [3, 4, 5]]]
    for gathered in shared_pool(2).run(tasks.gathered, [torch.empty(0, 4)] * 2, False):
        assert [tuple(t.shape) for t in gathered] == [(0, 4)] * 2


REQUESTS = {
    "text": DenoiseRequest(num_timesteps=8),
    "text and image": DenoiseRequest(cfg_img_scale=1.5, num_timesteps=12),
}


@pytest.mark.parametrize("guidance", ["text", pytest.param("text and image", marks=pytest.mark.nightly)])
def test_traces_count_what_pytorch_counts(guidance: str) -> None:
    # One test for all loops: loading PyTorch's instrumentation takes each rank seconds.
    request = REQUESTS[guidance]
    for loop in LOOPS:
        counts_agree(request, len(request.branches), loop)
    if len(request.branches) == 3:
        counts_agree(request, 2, "round_robin")


def counts_agree(request: DenoiseRequest, world_size: int, loop: str) -> None:
    plan = Plan(request, ModelOptions(), loop=loop)
    results = shared_pool(world_size).run(tasks.trace_under_comm_debug_mode, plan)
    assert len(results) == world_size
    for trace, counted in results:
        if loop == REFERENCE:
            assert counted == {}
        else:
            assert counted == {COUNTED[name]: trace.count(name) for name in COUNTED}, loop
            assert trace.count(ALL_GATHER) >= request.schedule.guided_steps > 0
            assert trace.count(BROADCAST) == (request.schedule.steps + 1 if loop == "broadcast" else 1)
