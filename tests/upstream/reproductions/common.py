"""Two gloo ranks on a CPU in upstream's own groups; nothing of this suite. vllm and vllm-omni 0.30.0 must be installed.

Upstream has no CPU platform, and its package imports the serving stack: ``world`` puts a platform and a bare package in
place of these two, and nothing else.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import tempfile
import types
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def everyone(value: Any) -> list[Any]:
    """Every rank's value."""
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def launch(function: Callable[[int, int], None], ranks: int) -> None:
    """Calls ``function(rank, ranks)`` in so many processes."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_enter, (function, ranks, os.path.join(folder, "store")), nprocs=ranks)


def _enter(rank: int, function: Callable[[int, int], None], ranks: int, store: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": str(rank), "WORLD_SIZE": str(ranks),
                   "LOCAL_RANK": str(rank), "VLLM_LOGGING_LEVEL": "ERROR"}  # fmt: skip
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    world(ranks)
    with torch.inference_mode():
        function(rank, ranks)
    dist.barrier()


def world(ranks: int) -> None:
    """Upstream's parallel state with CFG parallelism over all ranks."""
    spec = importlib.util.find_spec("vllm_omni")
    assert spec is not None
    package = types.ModuleType("vllm_omni")
    package.__path__, package.__spec__ = list(spec.submodule_search_locations or ()), spec
    sys.modules["vllm_omni"] = package
    platforms = importlib.import_module("vllm_omni.platforms")
    interface = importlib.import_module("vllm_omni.platforms.interface")
    names = {
        "_omni_enum": interface.OmniPlatformEnum.UNSPECIFIED,
        "device_type": "cpu",
        "device_name": "cpu",
        "dist_backend": "gloo",
        "get_torch_device": classmethod(lambda cls, local_rank=None: torch.device("cpu")),
        "get_device_count": classmethod(lambda cls: 1),
        "set_device": classmethod(lambda cls, device: None),
        "supports_torch_inductor": classmethod(lambda cls: False),
        "get_diffusion_attn_backend_cls": classmethod(
            lambda cls, *_, **__: "vllm_omni.diffusion.attention.backends.sdpa.SDPABackend"
        ),
    }
    vars(platforms)["_current_omni_platform"] = type("Cpu", (interface.OmniPlatform,), names)()
    config = importlib.import_module("vllm.config")
    made = config.VllmConfig(device_config=config.DeviceConfig(device="cpu"))
    config.set_current_vllm_config(made).__enter__()
    state = importlib.import_module("vllm_omni.diffusion.distributed.parallel_state")
    rank = dist.get_rank()
    state.init_distributed_environment(
        world_size=ranks, rank=rank, distributed_init_method="env://", local_rank=rank, backend="gloo"
    )
    state.initialize_model_parallel(cfg_parallel_size=ranks, backend="gloo")
