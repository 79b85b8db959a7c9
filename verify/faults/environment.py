"""Faults after which a rank is not like the others, though its bits may be: another request would show it."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from verify import loops
from verify.faults.registry import Wiring, fault
from verify.protocols import Denoiser, Group
from verify.ranks import settings

_TOWARDS_ZERO, _TO_NEAREST = 0xC00, 0


def _while_evaluating(wiring: Wiring, step: int, begin: Callable[[], Any], end: Callable[[], Any]) -> None:
    """Rank 1 evaluates ``step`` between ``begin`` and ``end``."""

    def evaluate(denoiser: Denoiser, x_t: Tensor, at: int, branch: str) -> Tensor:
        if not wiring.at(step, 1):
            return denoiser.velocity(x_t, at, branch)
        begin()
        try:
            return denoiser.velocity(x_t, at, branch)
        finally:
            end()

    wiring.on_velocity(evaluate)


@fault(source="none public", breaks="environment", step=0, rank=1, caught_by="environments_agree")
def matmul_precision_on_one_rank(wiring: Wiring) -> None:
    """Rank 1 allows TF32 in float32 products."""
    if wiring.rank == 1:
        torch.set_float32_matmul_precision("high")


@fault(source="pt 179445, 189955", breaks="environment", step=9, rank=1, caught_by="environments_agree")
def precision_of_one_backend(wiring: Wiring) -> None:
    """Rank 1 lets oneDNN cut float32 inputs to bfloat16, by the newer of PyTorch's two interfaces, from step 9 on."""
    backends: Any = torch.backends

    def cut() -> None:
        backends.mkldnn.matmul.fp32_precision = "bf16"

    _while_evaluating(wiring, 9, cut, lambda: None)


@fault(source="none public", breaks="environment", step=0, rank=1, caught_by="environments_agree")
def threads_on_one_rank(wiring: Wiring) -> None:
    """Rank 1 sums over another number of threads."""
    if wiring.rank == 1:
        torch.set_num_threads(torch.get_num_threads() + 1)


@fault(source="none public", breaks="environment", step=3, rank=1, caught_by="environments_agree")
def threads_in_one_step(wiring: Wiring) -> None:
    """Rank 1 evaluates step 3 over another number of threads, and puts it right."""
    count = torch.get_num_threads()
    _while_evaluating(wiring, 3, lambda: torch.set_num_threads(count + 1), lambda: torch.set_num_threads(count))


@fault(source="none public", breaks="environment", step=0, rank=1, caught_by="environments_agree")
def thread_of_its_own(wiring: Wiring) -> None:
    """Rank 1 runs the loop in a worker thread that has another number of threads to share its sums."""
    loop = wiring.loop

    def elsewhere(denoiser: Denoiser, request: Any, x_0: Tensor, group: Group, observe: Any) -> Tensor:
        given = denoiser, request, x_0, group, observe
        if wiring.rank != 1:
            return loop(*given)
        results: list[Tensor] = []

        @torch.no_grad()
        def work() -> None:
            torch.set_num_threads(torch.get_num_threads() + 1)
            results.append(loop(*given))

        worker = threading.Thread(target=work)
        worker.start()
        worker.join()
        return results[0]

    wiring.loop = elsewhere


@fault(source="none public", breaks="environment", step=5, rank=1, caught_by="environments_agree")
def default_dtype_on_one_rank(wiring: Wiring) -> None:
    """Rank 1 leaves float64 as the default dtype from step 5 on."""
    _while_evaluating(wiring, 5, lambda: torch.set_default_dtype(torch.float64), lambda: None)


@fault(source="none public", breaks="environment", step=2, rank=1, caught_by="environments_agree")
def autocast_in_one_step(wiring: Wiring) -> None:
    """Rank 1 evaluates step 2 under autocast."""
    device = wiring.x_0.device.type
    before = torch.is_autocast_enabled(device)
    _while_evaluating(
        wiring, 2, lambda: torch.set_autocast_enabled(device, not before),
        lambda: torch.set_autocast_enabled(device, before),
    )  # fmt: skip


@fault(source="none public", breaks="environment", step=6, rank=1, caught_by="environments_agree")
def attention_missing_on_one_rank(wiring: Wiring) -> None:
    """Rank 1 may not use flash attention from step 6 on."""
    _while_evaluating(wiring, 6, lambda: torch.backends.cuda.enable_flash_sdp(False), lambda: None)


@fault(source="none public", breaks="environment", step=0, rank=1, caught_by="environments_agree")
def nondeterministic_on_one_rank(wiring: Wiring) -> None:
    """Rank 1 may use operators whose result depends on the order in which threads finish."""
    if wiring.rank == 1:
        torch.set_deterministic_debug_mode("default")


@fault(source="none public", breaks="environment", step=7, rank=1, caught_by="environments_agree")
def rounding_on_one_rank(wiring: Wiring) -> None:
    """Rank 1's processor rounds towards zero while it evaluates step 7."""
    library = ctypes.CDLL(None)
    _while_evaluating(
        wiring, 7, lambda: library.fesetround(_TOWARDS_ZERO), lambda: library.fesetround(_TO_NEAREST)
    )  # fmt: skip


@fault(source="none public", breaks="environment", step=0, rank=None, caught_by="environments_agree")
def subnormals_flushed(wiring: Wiring) -> None:
    """Every rank makes zeros of subnormal numbers, and would go on to do so in what is computed after the loop."""
    torch.set_flush_denormal(True)


@fault(source="pydata/numexpr 421", breaks="environment", step=4, rank=1, caught_by="environments_agree")
def variable_on_one_rank(wiring: Wiring) -> None:
    """Rank 1 sets a variable that lowers the precision of products, in step 4."""
    name = "ONEDNN_DEFAULT_FPMATH_MODE"
    _while_evaluating(wiring, 4, lambda: os.environ.__setitem__(name, "BF16"), lambda: None)


@fault(source="ray-project/ray 458", breaks="environment", step=None, rank=1, caught_by="environments_agree",
       lasting=True)  # fmt: skip
def another_source_on_one_rank(wiring: Wiring) -> None:
    """Rank 1 has loaded another version of a module of the engine."""
    module = ModuleType("engine_kernels")
    file = "broadcast.py" if wiring.rank == 1 else "local.py"
    module.__file__ = os.path.join(os.path.dirname(loops.__file__), file)
    sys.modules[module.__name__] = module


@fault(source="trt-llm 17670, 18477; pt 105726", breaks="environment", step=None, rank=1,
       caught_by="environments_agree", lasting=True)  # fmt: skip
def mixed_gpu_models(wiring: Wiring) -> None:
    """Rank 1 sits on another model of GPU (said, not simulated: this machine has one)."""
    if wiring.rank == 1:
        honest = settings.environment

        def mixed(device: torch.device, backend: str) -> dict[str, Any]:
            return honest(device, backend) | {"gpu": "another GPU model"}

        settings.environment = mixed  # lasting: its trace is written after the loop
