"""Loops for launched processes, each with one thing wrong in one process; the variable ``VICTIM`` says in which."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "meta"))

from broken_loops import denoise

STEP = 3


def _is_victim() -> bool:
    names = ("RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")
    return os.environ.get("VICTIM") == next((os.environ[name] for name in names if name in os.environ), None)


def _on_victim(act: Any) -> Any:
    """A loop in which the victim does ``act(step, x_t)`` after step 3."""

    def loop(denoiser: Any, request: Any, x_0: Tensor, group: Any, observe: Any) -> Tensor:
        def change(step: int, x_t: Tensor) -> Tensor:
            changed: Tensor = act(x_t) if step == STEP and _is_victim() else x_t
            return changed

        return denoise(denoiser, request, x_0, group, observe, after_step=change)

    return loop


def _one_ulp(x_t: Tensor) -> Tensor:
    x_t = x_t.clone()
    x_t.view(torch.int32)[3, 5] ^= 1
    return x_t


def _raise(x_t: Tensor) -> Tensor:
    raise RuntimeError("the scheduler ran out of steps")


def _leave(x_t: Tensor) -> Tensor:
    os._exit(7)


def _stand(x_t: Tensor) -> Tensor:
    """Says so in a file, then stands still for good."""
    Path(os.environ["FOLDER"], f"stands {os.environ['VICTIM']}").write_text(str(os.getpid()))
    time.sleep(1e6)
    return x_t


def _bad_shape(x_t: Tensor) -> Tensor:
    return x_t[:-1]


one_ulp = _on_victim(_one_ulp)
raises = _on_victim(_raise)
leaves = _on_victim(_leave)
stands = _on_victim(_stand)
wrong_shape = _on_victim(_bad_shape)


def one_ulp_in_replica(denoiser: Any, request: Any, x_0: Tensor, group: Any, observe: Any) -> Tensor:
    """Every rank of the victim's replica is one ULP off after step 3: the ranks agree, the replicas do not."""
    number = int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))
    mine = number // group.world_size == int(os.environ["VICTIM"]) // group.world_size

    def change(step: int, x_t: Tensor) -> Tensor:
        return _one_ulp(x_t) if step == STEP and mine else x_t

    return denoise(denoiser, request, x_0, group, observe, after_step=change)
