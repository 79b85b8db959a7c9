"""Which ranks go where: a table of machines."""

from __future__ import annotations

import os

import pytest
import torch

from verify.errors import BadInput, Unjudged
from verify.ranks.plan import place


@pytest.fixture(autouse=True)
def _one_controller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VERIFY_CONTROLLER", raising=False)


def with_gpus(monkeypatch: pytest.MonkeyPatch, count: int, worker: str | None = None) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    if worker is not None:
        monkeypatch.setenv("VERIFY_CONTROLLER", worker)


@pytest.mark.parametrize(
    ("gpus", "world_size", "backend", "devices", "chosen", "note"),
    [
        (1, 1, None, (0,), "nccl", None),
        (1, 1, "gloo", (0,), "gloo", None),
        (1, 2, None, (0, 0), "gloo", "2 ranks share 1 GPU over gloo"),
        (1, 3, "gloo", (0, 0, 0), "gloo", "3 ranks share 1 GPU over gloo"),
        (2, 1, None, (0,), "nccl", None),
        (2, 2, None, (0, 1), "nccl", None),
        (2, 2, "nccl", (0, 1), "nccl", None),
        (2, 2, "gloo", (0, 1), "gloo", None),
        (2, 3, None, (0, 1, 0), "gloo", "3 ranks share 2 GPUs over gloo"),
        (4, 2, None, (0, 1), "nccl", None),
        (4, 3, None, (0, 1, 2), "nccl", None),
        (4, 4, "nccl", (0, 1, 2, 3), "nccl", None),
        (4, 5, None, (0, 1, 2, 3, 0), "gloo", "5 ranks share 4 GPUs over gloo"),
    ],
)
def test_on_gpus(
    monkeypatch: pytest.MonkeyPatch,
    gpus: int,
    world_size: int,
    backend: str | None,
    devices: tuple[int, ...],
    chosen: str,
    note: str | None,
) -> None:
    with_gpus(monkeypatch, gpus)
    placement = place(world_size, "cuda", backend)
    assert placement.spec.devices == tuple(f"cuda:{gpu}" for gpu in devices)
    assert (placement.spec.backend, placement.spec.threads) == (chosen, 1)
    assert placement.spec.gpus == sorted(set(devices))
    assert [text.split(":")[0] for text in placement.notes] == ([] if note is None else [note])
    if chosen == "nccl":
        assert len(set(devices)) == world_size


@pytest.mark.parametrize(
    ("gpus", "world_size", "expected"),
    [
        (4, 2, {"0": (0, 1), "1": (2, 3), "2": (0, 1), "15": (2, 3)}),
        (3, 2, {"0": (0, 1), "1": (2, 0), "2": (1, 2)}),
        (1, 2, {"0": (0, 0), "1": (0, 0)}),
    ],
)
def test_controllers_begin_at_different_gpus(
    monkeypatch: pytest.MonkeyPatch, gpus: int, world_size: int, expected: dict[str, tuple[int, ...]]
) -> None:
    for worker, devices in expected.items():
        with_gpus(monkeypatch, gpus, worker)
        assert place(world_size, "cuda").spec.devices == tuple(f"cuda:{gpu}" for gpu in devices), worker


@pytest.mark.parametrize(("world_size", "threads"), [(1, 8), (2, 4), (3, 2), (5, 1), (64, 1)])
def test_on_the_cpu_ranks_share_the_cores_equally(
    monkeypatch: pytest.MonkeyPatch, world_size: int, threads: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    for backend in (None, "gloo"):
        placement = place(world_size, "cpu", backend)
        assert placement.spec.devices == ("cpu",) * world_size
        assert (placement.spec.backend, placement.spec.threads) == ("gloo", threads)
        assert (placement.spec.gpus, placement.notes) == ([], ())
    assert place(world_size, "cpu", threads=3).spec.threads == 3


@pytest.mark.parametrize(
    ("world_size", "device", "backend", "message"),
    [
        (0, "cpu", None, "world size is 0, expected an integer from 1 to 64; choose one in that range"),
        (65, "cpu", None, "world size is 65, expected an integer from 1 to 64; choose one in that range"),
        (-1, "cuda", None, "world size is -1, expected an integer from 1 to 64; choose one in that range"),
        (True, "cpu", None, "world size is True, expected an integer from 1 to 64; choose one in that range"),
        (2.0, "cpu", None, "world size is 2.0, expected an integer from 1 to 64; choose one in that range"),
        (2, "tpu", None, "device is 'tpu', expected cpu or cuda; choose one"),
        (2, "cuda:0", None, "device is 'cuda:0', expected cpu or cuda; choose one"),
        (2, "cpu", "mpi", "backend is 'mpi', expected gloo or nccl; choose one or leave it out"),
        (
            2,
            "cpu",
            "nccl",
            "backend is 'nccl', expected gloo on the cpu, since NCCL moves GPU memory; use --device cuda",
        ),
    ],
)
def test_bad_input(
    monkeypatch: pytest.MonkeyPatch, world_size: int, device: str, backend: str | None, message: str
) -> None:
    with_gpus(monkeypatch, 4)
    with pytest.raises(BadInput) as caught:
        place(world_size, device, backend)
    assert str(caught.value) == message


@pytest.mark.parametrize("backend", [None, "gloo", "nccl"])
def test_no_gpu_is_no_judgement(monkeypatch: pytest.MonkeyPatch, backend: str | None) -> None:
    with_gpus(monkeypatch, 0)
    with pytest.raises(Unjudged, match=r"^device is 'cuda' and this machine shows no GPU; use --device cpu or a machi"):
        place(2, "cuda", backend)


def test_nccl_needs_a_gpu_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, 2)
    with pytest.raises(Unjudged) as caught:
        place(3, "cuda", "nccl")
    assert str(caught.value) == (
        "NCCL needs a GPU for each of 3 ranks and this machine has 2; "
        "use --backend gloo to share them or a larger machine"
    )


@pytest.mark.parametrize(("world_size", "group", "processes"), [(1, (3,), 4), (2, (3, 1), 4), (3, (3, 1, 4), 5)])
def test_a_group_in_a_larger_world(world_size: int, group: tuple[int, ...], processes: int) -> None:
    placement = place(world_size, "cpu", larger_world=True, fresh_interpreters=True)
    assert (placement.spec.members, len(placement.spec.devices)) == (group, processes)
    assert placement.spec.fresh_interpreters
    assert placement.notes[0].startswith("the CFG group is made of ranks 3")


def test_who_is_which_controller_must_be_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, 2, "gw1")
    with pytest.raises(BadInput, match="VERIFY_CONTROLLER is 'gw1', expected a number from 0"):
        place(2, "cuda")
