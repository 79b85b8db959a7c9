"""Which ranks go where, and over what they talk."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from verify.errors import BadInput, Unjudged
from verify.ranks.local.pool import PoolSpec
from verify.surroundings import check_gpus, check_network


@dataclass(frozen=True)
class Placement:
    """Where a pool's ranks go.

    Attributes:
        spec: the pool.
        notes: what a reader of the results must know about it.
    """

    spec: PoolSpec
    notes: tuple[str, ...] = ()


def place(world_size: int, device: str, backend: str | None = None, threads: int | None = None) -> Placement:
    """Decides devices and backend for ``world_size`` ranks.

    Over NCCL every rank needs a GPU of its own. With fewer GPUs than ranks, ranks share them over gloo, and the notes
    say so. Workers of one pytest run begin at different GPUs.

    Raises:
        BadInput: a world size, device or backend that does not exist or does not fit the others.
        Unjudged: this machine has too few GPUs.
    """
    if isinstance(world_size, bool) or not isinstance(world_size, int) or not 1 <= world_size <= 64:
        raise BadInput.of("world size", world_size, "an integer from 1 to 64", "choose one in that range")
    require_fitting(device, backend)
    if backend != "nccl":
        check_network()
    if device == "cpu":
        cores = len(os.sched_getaffinity(0))
        return Placement(PoolSpec(("cpu",) * world_size, "gloo", threads or max(1, cores // world_size)))
    check_gpus()
    gpus = torch.cuda.device_count()
    if gpus == 0:
        shown = os.environ.get("CUDA_VISIBLE_DEVICES")
        among = "" if shown is None else f" among CUDA_VISIBLE_DEVICES={shown!r}"
        raise Unjudged(
            f"device is 'cuda' and this machine shows no GPU{among}; use --device cpu or a machine that has one"
        )
    if backend == "nccl" and gpus < world_size:
        raise Unjudged(
            f"NCCL needs a GPU for each of {world_size} ranks and this machine has {gpus}; "
            "use --backend gloo to share them or a larger machine"
        )
    first = _worker_number() * world_size % gpus
    devices = tuple(f"cuda:{(first + rank) % gpus}" for rank in range(world_size))
    chosen = backend or ("nccl" if gpus >= world_size else "gloo")
    notes: tuple[str, ...] = ()
    if gpus < world_size:
        notes = (
            f"{world_size} ranks share {gpus} GPU{'s' * (gpus > 1)} over gloo: bits are judged as on separate GPUs, "
            "but times say nothing about them",
        )
    return Placement(PoolSpec(devices, chosen, threads or 1), notes)


def require_fitting(device: str, backend: str | None) -> None:
    """Checks that device and backend exist and go together.

    Raises:
        BadInput: they do not.
    """
    if device not in ("cpu", "cuda"):
        raise BadInput.of("device", device, "cpu or cuda", "choose one")
    if backend not in (None, "gloo", "nccl"):
        raise BadInput.of("backend", backend, "gloo or nccl", "choose one or leave it out")
    if (device, backend) == ("cpu", "nccl"):
        raise BadInput.of("backend", backend, "gloo on the cpu, since NCCL moves GPU memory", "use --device cuda")


def _worker_number() -> int:
    """Which worker of ``pytest -n`` this is, from 0."""
    digits = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    return int(digits) if digits.isdigit() else 0
