"""vllm-omni's own parallel state on this rank, made once and kept for the life of the process."""

from __future__ import annotations

import importlib
import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from verify.errors import BadInput, Unjudged
from verify.targets.vllm_omni import stand_ins
from verify.targets.vllm_omni.versions import Version, cannot_be_driven, installed_version, version_of


@dataclass
class World:
    """What all requests of this process share.

    Attributes:
        installed: vllm-omni's version.
        version: how it is driven.
        bagel_class: upstream's network with its loop.
        coordinator: upstream's CFG-parallel group.
        substituted: what was replaced, in words.
    """

    installed: str
    version: Version
    bagel_class: Any
    coordinator: Any
    substituted: tuple[str, ...]


_world: World | None = None
_kept = ExitStack()


def world(device: torch.device) -> World:
    """Imports vllm-omni and makes its groups, over the ranks that this process already belongs to.

    Raises:
        Unjudged: vllm-omni is not installed, or this version cannot be driven.
    """
    global _world
    if _world is None:
        installed = installed_version()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                _world = _enter(installed, device)
        except (Unjudged, BadInput):
            raise
        except Exception as error:
            raise cannot_be_driven(installed, "importing it and making its process groups", error) from error
    return _world


@lru_cache(maxsize=1)
def imported(device: torch.device) -> tuple[Any, tuple[str, ...]]:
    """Upstream's class Bagel, and what was replaced so that it can be imported; once in a process.

    Vllm's configuration is entered for good: its layers read it when they are built.
    """
    said = stand_ins.before_import(device)
    configuration = stand_ins.vllm_config(device, said)
    config = importlib.import_module("vllm.config")
    _kept.enter_context(config.set_current_vllm_config(configuration))
    said += stand_ins.after_import(device)
    return importlib.import_module("vllm_omni.diffusion.models.bagel.bagel_transformer").Bagel, tuple(said)


def parallel_state() -> Any:
    """Upstream's module of process groups."""
    return importlib.import_module("vllm_omni.diffusion.distributed.parallel_state")


def warm_up() -> None:
    """For the process that ranks on a CPU are forked from: they need not import upstream again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        imported(torch.device("cpu"))
        parallel_state()


def _enter(installed: str, device: torch.device) -> World:
    bagel, said = imported(device)
    version = version_of(installed, bagel)
    state = parallel_state()
    rank, world_size, backend = dist.get_rank(), dist.get_world_size(), dist.get_backend()
    # The default group is there, so upstream adopts it; the local rank is the number of the GPU.
    state.init_distributed_environment(
        world_size=world_size,
        rank=rank,
        distributed_init_method="env://",
        local_rank=(device.index or 0) if device.type == "cuda" else rank,
        backend=backend,
    )
    state.initialize_model_parallel(cfg_parallel_size=world_size, backend=backend)
    return World(installed, version, bagel, state.get_cfg_group(), said)


class UpstreamGroup:
    """Upstream's CFG group as loops see a group. It keeps the methods it found, whatever hides them later."""

    def __init__(self, coordinator: Any) -> None:
        self.rank: int = coordinator.rank_in_group
        self.world_size: int = coordinator.world_size
        self._all_gather, self._broadcast = coordinator.all_gather, coordinator.broadcast

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """Every rank's ``tensor`` in rank order: views of one buffer, as upstream makes them."""
        gathered: list[Tensor] = self._all_gather(tensor, separate_tensors=True)
        return gathered

    def broadcast(self, tensor: Tensor, src: int = 0) -> Tensor:
        """Overwrites ``tensor`` with rank ``src``'s, in place."""
        self._broadcast(tensor, src=src)
        return tensor
