"""Every way in which a process may exchange tensors with others, for ranks to take. They import this by its name."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.distributed_c10d import _coalescing_manager
from torch.distributed.tensor import DTensor, Replicate, Shard

from verify.ranks.rank import Rank
from verify.trace.exchanges import Exchange, listening

Way = Callable[[int, int, Tensor], Any]


def _world() -> dist.ProcessGroup:
    world = dist.group.WORLD
    assert world is not None
    return world


def _slots(size: int, x: Tensor) -> list[Tensor]:
    return [torch.empty_like(x) for _ in range(size)]


def _to_next(rank: int, size: int, x: Tensor) -> Any:
    return dist.send(x, 1) if rank == 0 else dist.recv(torch.empty_like(x), 0) if rank == 1 else None


def _from_anybody(rank: int, size: int, x: Tensor) -> Any:
    return dist.send(x, 1) if rank == 0 else dist.recv(torch.empty_like(x)) if rank == 1 else None


def _batch(rank: int, size: int, x: Tensor) -> None:
    operations = [
        dist.P2POp(dist.isend, x, (rank + 1) % size),
        dist.P2POp(dist.irecv, torch.empty_like(x), (rank - 1) % size),
    ]
    for work in dist.batch_isend_irecv(operations):
        work.wait()


def _coalesced(rank: int, size: int, x: Tensor) -> None:
    with _coalescing_manager():
        dist.all_reduce(x)
        dist.all_reduce(x.clone())


def _own_group(rank: int, size: int, x: Tensor) -> None:
    dist.broadcast(x, 1, group=dist.new_group([0, 1]))


def _in_a_thread(rank: int, size: int, x: Tensor) -> None:
    thread = threading.Thread(target=dist.all_reduce, args=(x,))
    thread.start()
    thread.join()


def _in_inference_mode(rank: int, size: int, x: Tensor) -> None:
    with torch.inference_mode():
        dist.all_reduce(torch.ones(4))


def _redistributed(rank: int, size: int, x: Tensor) -> None:
    mesh = init_device_mesh("cpu", (size,))
    DTensor.from_local(x, mesh, [Shard(0)], run_check=False).redistribute(mesh, [Replicate()]).to_local()


def _by_the_backend(rank: int, size: int, x: Tensor) -> None:
    backend: Any = _world()._get_backend(x.device)
    backend.allreduce([x]).wait()


WAYS: dict[str, Way] = {
    "broadcast": lambda r, n, x: dist.broadcast(x, 1),
    "all_gather": lambda r, n, x: dist.all_gather(_slots(n, x), x),
    "all_gather, async": lambda r, n, x: dist.all_gather(_slots(n, x), x, async_op=True).wait(),
    "all_gather_into_tensor": lambda r, n, x: dist.all_gather_into_tensor(torch.empty(4 * n), x),
    "all_reduce": lambda r, n, x: dist.all_reduce(x),
    "reduce": lambda r, n, x: dist.reduce(x, 1),
    "gather": lambda r, n, x: dist.gather(x, _slots(n, x) if r == 1 else None, dst=1),
    "scatter": lambda r, n, x: dist.scatter(x, _slots(n, x) if r == 1 else None, src=1),
    "reduce_scatter": lambda r, n, x: dist.reduce_scatter_tensor(torch.empty(4), torch.ones(4 * n)),
    "all_to_all": lambda r, n, x: dist.all_to_all_single(torch.empty(4), torch.ones(4), [4 // n] * n, [4 // n] * n),
    "send": _to_next,
    "recv from anybody": _from_anybody,
    "batch_isend_irecv": _batch,
    "coalesced": _coalesced,
    "barrier": lambda r, n, x: dist.barrier(),
    "monitored_barrier": lambda r, n, x: dist.monitored_barrier(),
    "broadcast_object_list": lambda r, n, x: dist.broadcast_object_list([{"step": 1}], 0),
    "all_gather_object": lambda r, n, x: dist.all_gather_object([None] * n, r),
    "own group": _own_group,
    "in a thread": _in_a_thread,
    "in inference mode": _in_inference_mode,
    "functional": lambda r, n, x: functional.all_reduce(x, "sum", _world()) + 1,
    "functional, gather": lambda r, n, x: functional.all_gather_tensor(x, 0, _world()) + 1,
    "DTensor": _redistributed,
    "backend": _by_the_backend,
}


def heard(rank: Rank) -> dict[str, list[Exchange]]:
    """What this rank hears of each way; and that nothing is heard afterwards."""
    warnings.simplefilter("ignore", FutureWarning)  # Some of these have newer names in newer versions.
    found: dict[str, list[Exchange]] = {}
    after: list[Exchange] = []
    for name, way in WAYS.items():
        found[name] = []
        with listening(found[name].append):
            way(rank.rank, rank.world_size, torch.ones(4))
        with listening(after.append):
            pass
        dist.barrier()
    assert not after
    return found


def results(rank: Rank, listen: bool) -> list[Any]:
    """What exchanges give, and the errors of wrong ones, with and without a listener."""

    def tried(what: Callable[[], Any]) -> Any:
        try:
            return what()
        except Exception as error:
            return type(error).__name__, str(error)

    def work() -> list[Any]:
        x, slots = torch.arange(4.0) + rank.rank, _slots(rank.world_size, torch.empty(4))
        dist.all_gather(slots, x)
        dist.broadcast(x, 1)
        total = functional.all_reduce(x, "sum", _world()).tolist()
        return [
            [slot.tolist() for slot in slots],
            x.tolist(),
            total,
            tried(lambda: dist.all_gather([torch.empty(3)], x)),
            tried(lambda: dist.broadcast(x, 99)),
        ]

    if not listen:
        return work()
    with listening(lambda exchange: None), listening(lambda exchange: None):
        return work()


def others_run_meanwhile(rank: Rank) -> int:
    """How often another thread has its turn while this one waits within an exchange."""
    turns, done = [0], threading.Event()

    def count() -> None:
        while not done.wait(0.002):
            turns[0] += 1

    thread = threading.Thread(target=count)
    with listening(lambda exchange: None):
        thread.start()
        if rank.rank:
            time.sleep(0.5)
        dist.monitored_barrier()
    done.set()
    thread.join()
    return turns[0]


def seconds_of_an_operator(rank: Rank, listen: bool) -> float:
    """The least time that an ordinary operator took."""
    x, seconds = torch.ones(4), []

    def measure() -> None:
        for _ in range(50):
            began = time.perf_counter()
            for _ in range(200):
                _ = x + x
            seconds.append((time.perf_counter() - began) / 200)

    if listen:
        with listening(lambda exchange: None):
            measure()
    else:
        measure()
    return min(seconds)
