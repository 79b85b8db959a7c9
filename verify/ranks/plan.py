"""Which ranks go where, and over what they talk."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import torch

from verify.errors import BadInput, Unjudged
from verify.limits import usable_cores
from verify.ranks.group import can_permute
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


def place(
    world_size: int,
    device: str,
    backend: str | None = None,
    threads: int | None = None,
    *,
    larger_world: bool = False,
    fresh_interpreters: bool = False,
) -> Placement:
    """Decides devices and backend for ``world_size`` ranks.

    Over NCCL every rank needs a GPU of its own. With fewer GPUs than ranks, ranks share them over gloo, and the notes
    say so. The variable ``VERIFY_CONTROLLER`` says which of several controllers on a host this is, from 0:
    they begin at different GPUs.

    Args:
        world_size: ranks of the CFG group.
        device: ``cpu`` or ``cuda``.
        backend: gloo or nccl; None for what fits.
        threads: CPU threads of each rank; None for its share of the cores.
        larger_world: whether the CFG group is a part of a larger world, and its ranks in another order than that of
            the world. A loop that takes the world for its group then fails.
        fresh_interpreters: as in :class:`PoolSpec`.

    Raises:
        BadInput: a world size, device or backend that does not exist or does not fit the others.
        Unjudged: this machine has too few GPUs.
    """
    if isinstance(world_size, bool) or not isinstance(world_size, int) or not 1 <= world_size <= 64:
        raise BadInput.of("world size", world_size, "an integer from 1 to 64", "choose one in that range")
    require_fitting(device, backend)
    if backend != "nccl":
        check_network()
    group = _group_in_larger_world(world_size) if larger_world else None
    processes = world_size if group is None else max(*group, world_size + 1) + 1
    if device == "cpu":
        spec = PoolSpec(("cpu",) * processes, "gloo", threads or max(1, usable_cores() // world_size))
    else:
        spec = _on_gpus(processes, backend, threads)
    notes = (*_sharing(spec), *_in_world(group, processes))
    return Placement(replace(spec, group=group, fresh_interpreters=fresh_interpreters), notes)


def _on_gpus(processes: int, backend: str | None, threads: int | None) -> PoolSpec:
    check_gpus()
    gpus = torch.cuda.device_count()
    if gpus == 0:
        shown = os.environ.get("CUDA_VISIBLE_DEVICES")
        among = "" if shown is None else f" among CUDA_VISIBLE_DEVICES={shown!r}"
        raise Unjudged(
            f"device is 'cuda' and this machine shows no GPU{among}; use --device cpu or a machine that has one"
        )
    if backend == "nccl" and gpus < processes:
        raise Unjudged(
            f"NCCL needs a GPU for each of {processes} ranks and this machine has {gpus}; "
            "use --backend gloo to share them or a larger machine"
        )
    first = _controller() * processes % gpus
    devices = tuple(f"cuda:{(first + rank) % gpus}" for rank in range(processes))
    return PoolSpec(devices, backend or ("nccl" if gpus >= processes else "gloo"), threads or 1)


def _sharing(spec: PoolSpec) -> tuple[str, ...]:
    processes, gpus = len(spec.devices), len(spec.gpus)
    if not gpus or gpus == processes:
        return ()
    return (
        f"{processes} ranks share {gpus} GPU{'s' * (gpus > 1)} over gloo: bits are judged as on separate GPUs, "
        "but times say nothing about them",
    )


def _group_in_larger_world(world_size: int) -> tuple[int, ...]:
    """Global ranks of a CFG group that begins after rank 0, leaves out rank 2, and is not in their order."""
    group = (3, 1, *range(4, world_size + 2))[:world_size]
    return group if can_permute() else tuple(sorted(group))


def _in_world(group: tuple[int, ...] | None, processes: int) -> tuple[str, ...]:
    if group is None:
        return ()
    named = ", ".join(map(str, group))
    return (f"the CFG group is made of ranks {named} of {processes}, in this order; ranks are named by that number",)


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


def _controller() -> int:
    value = os.environ.get("VERIFY_CONTROLLER", "0")
    if not (value.isascii() and value.isdigit()):
        raise BadInput.of("VERIFY_CONTROLLER", value, "a number from 0", "correct or unset it")
    return int(value)
