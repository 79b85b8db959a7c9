"""A launched process's rank: it joins the group of its replica, and the one of all processes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from verify.errors import Unjudged
from verify.ranks import settings
from verify.ranks.failure.status import StatusWriter
from verify.ranks.group import LIBRARY_TIMEOUT, ProcessGroup, new_group
from verify.ranks.launched.launch import Launch
from verify.ranks.launched.network import choose_interface, interfaces
from verify.ranks.launched.transfer import Transfer
from verify.ranks.rank import Rank


@dataclass
class LaunchedRank(Rank):
    """A rank of one replica among several."""

    def environment(self) -> dict[str, Any]:
        """What this rank runs on. Which GPUs it is shown says where it runs; what they are is told beside it."""
        found = super().environment() | {"replica": self.replica}
        shown = found["variables"].pop("CUDA_VISIBLE_DEVICES", None)
        return found if shown is None else found | {"visible_gpus": shown}


@dataclass(frozen=True)
class Joined:
    """What a process has joined.

    Attributes:
        rank: what tasks are given.
        transfer: the way to all other processes.
        notes: what a reader of the results must know.
    """

    rank: LaunchedRank
    transfer: Transfer
    notes: tuple[str, ...]


def join_groups(
    launch: Launch, store: Any, status: StatusWriter, ranks: int, device: str, backend: str | None, *, one_world: bool
) -> Joined:
    """Settings first, then the groups, as in a pool's rank. Waits for all processes; whoever watches bounds that.

    Args:
        launch: what the launcher says.
        store: where the processes meet.
        status: says how far this has come.
        ranks: of one replica.
        device: ``cpu`` or ``cuda``.
        backend: ``gloo``, ``nccl`` or None for what fits.
        one_world: whether torch.distributed's default group holds all processes, as under an engine. Else it holds the
            ranks of this replica, which is what targets expect that make groups of their own.

    Raises:
        Unjudged: this host has no GPU where one is asked for, or too few for NCCL.
    """
    replica, rank = launch.coordinates(ranks)
    settings.apply_environment(one_machine=launch.on_one_machine)
    if not launch.on_one_machine:
        choose_interface(launch.address, launch.port)
    # One unless the user says otherwise: hosts of different sizes must not come to split work differently.
    settings.apply_flags(_threads())
    own = _device(device, launch)
    gpus = _gpus(store, own, launch)
    shared = len(set(gpus)) < len(gpus)
    if backend == "nccl" and shared:
        raise Unjudged(
            f"NCCL needs a GPU for each of {len(gpus)} processes and they have {len(set(gpus))}; use --backend gloo to "
            "share them, or start one process a GPU"
        )
    chosen = backend or ("nccl" if gpus and not shared else "gloo")
    status.activity("joining its groups")
    try:
        transfer, group = _groups(launch, store, replica, rank, ranks, chosen, own, one_world)
    except RuntimeError as error:
        raise RuntimeError(
            f"{str(error).strip().splitlines()[0]} (if hosts do not reach each other by name, GLOO_SOCKET_IFNAME must "
            f"name the interface that they reach each other by: {interfaces()})"
        ) from error
    status.activity("")
    joined = LaunchedRank(
        rank,
        ranks,
        own,
        chosen,
        ProcessGroup(group),
        status,
        replica=replica,
        world=dist.group.WORLD,
        global_rank=launch.rank,
    )
    return Joined(joined, transfer, _notes(gpus))


def _groups(
    launch: Launch, store: Any, replica: int, rank: int, ranks: int, backend: str, device: torch.device, one_world: bool
) -> tuple[Transfer, dist.ProcessGroup | None]:
    """The way to all processes, the default group, and the replica's group where that is another."""
    transfer = Transfer(_part(store, "all"), launch.rank, launch.world_size, LIBRARY_TIMEOUT)
    number, processes = (launch.rank, launch.world_size) if one_world else (rank, ranks)
    dist.init_process_group(
        backend,
        store=_part(store, "world" if one_world else f"replica {replica}"),
        rank=number,
        world_size=processes,
        timeout=LIBRARY_TIMEOUT,
        device_id=device if backend == "nccl" else None,
    )
    if processes == ranks:
        return transfer, None
    return transfer, new_group(range(replica * ranks, (replica + 1) * ranks))


def _threads() -> int:
    """The threads of the outermost parallel region: OpenMP takes a list of them, one for each level of nesting."""
    return int(os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip() or 1)


def _part(store: Any, name: str) -> Any:
    return dist.PrefixStore(name, store)  # type: ignore[attr-defined]


def _device(device: str, launch: Launch) -> torch.device:
    if device == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if not count:
        raise Unjudged("device is 'cuda' and this host shows no GPU; use --device cpu or hosts that have one")
    own = torch.device("cuda", (launch.rank if launch.local_rank is None else launch.local_rank) % count)
    torch.cuda.set_device(own)
    return own


def _gpus(store: Any, device: torch.device, launch: Launch) -> list[str]:
    """Every process's GPU, by its unique id, in the order of global ranks; none on the CPU.

    Launchers may show each process a GPU of its own or all of its host's, so a count says nothing.
    """
    if device.type == "cpu":
        return []
    store.set(f"gpu {launch.rank}", str(torch.cuda.get_device_properties(device).uuid))
    return [raw.decode() for raw in store.multi_get([f"gpu {rank}" for rank in range(launch.world_size)])]


def _notes(gpus: list[str]) -> tuple[str, ...]:
    count = len(set(gpus))
    if count == len(gpus):
        return ()
    return (
        f"{len(gpus)} processes share {count} GPU{'s' * (count > 1)} over gloo: bits are judged as on separate GPUs, "
        "but times say nothing about them",
    )
