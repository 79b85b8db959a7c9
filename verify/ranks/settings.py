"""What a rank sets before anything can fix its bits, and what it then says of itself.

Every setting carries its reason. None of them makes a loop deterministic that is not: each removes a way in which two
ranks of one machine could come to run different kernels without anybody having asked for it. What fixes the order of a
reduction, such as ``NCCL_ALGO`` and ``NCCL_PROTO``, is left alone: loops gather and broadcast, which move bytes and add
nothing. A loop that reduces is judged as it runs at home.
"""

from __future__ import annotations

import os
import platform
import re
import socket
import sys
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from verify.environment.properties import BY_NAME
from verify.environment.variables import bit_variables
from verify.environment.watch import current


@dataclass(frozen=True)
class Made:
    """One setting that ranks make, and why.

    Attributes:
        name: of an environment variable, or of a property in :mod:`verify.environment.properties`.
        value: what it is set to.
        reason: why.
    """

    name: str
    value: Any
    reason: str


VARIABLES = (
    Made(
        "CUBLAS_WORKSPACE_CONFIG",
        ":4096:8",
        "cuBLAS may otherwise pick another algorithm when streams share its workspace (cuBLAS docs, reproducibility)",
    ),
    Made(
        "TORCHINDUCTOR_DETERMINISTIC",
        "1",
        "a compiled loop may otherwise time kernels on each rank and choose differently; read when the compiler loads",
    ),
    Made(
        "NCCL_NVLS_ENABLE",
        "0",
        "NVLink multicast is a property of the machine's set-up; without it every machine moves bytes the same way",
    ),
)

# Only where all ranks share one machine: between machines, gloo must find the network by itself.
ONE_MACHINE_VARIABLES = (Made("GLOO_SOCKET_IFNAME", "lo", "ranks of one machine need no resolvable host name"),)

FLAGS = (
    Made(
        "deterministic_debug_mode",
        1,
        "takes the reproducible variant of an operator where there is one; where there is none it warns",
    ),
    Made(
        "utils.deterministic.fill_uninitialized_memory",
        False,
        "would hide a loop that reads memory nothing wrote, and costs time",
    ),
    Made("backends.cudnn.benchmark", False, "each rank would time kernels for itself and could choose another"),
    Made("backends.cuda.matmul.allow_tf32", False, "float32 products keep float32 inputs on every rank"),
    Made("backends.cudnn.allow_tf32", False, "float32 convolutions keep float32 inputs on every rank"),
)


def apply_environment(one_machine: bool = True) -> None:
    """Sets the variables that the user has not set; what libraries read once must be there before they load."""
    chosen = [*VARIABLES]
    if one_machine and any(name == "lo" for _, name in socket.if_nameindex()):
        chosen += ONE_MACHINE_VARIABLES
    for variable in chosen:
        os.environ.setdefault(variable.name, variable.value)


def apply_flags(threads: int) -> None:
    """Sets PyTorch's flags and the number of CPU threads."""
    for flag in FLAGS:
        write = BY_NAME[flag.name].write
        assert write is not None
        write(flag.value)
    torch.set_num_threads(threads)


def environment(device: torch.device, backend: str) -> dict[str, Any]:
    """What this process runs on and how: hardware, versions, settings and variables, JSON values only."""
    found: dict[str, Any] = {
        "host": socket.gethostname(),
        "device": device.type,
        "backend": backend,
        "python": platform.python_version(),
        "python_optimize": sys.flags.optimize,
        "torch": torch.__version__,
        "torch_commit": torch.version.git_version,
        "libc": _libc(),
        "cpu": _cpu_info("model name") or platform.processor() or "unknown",
        "cpu_features": _vector_features(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "settings": current(),
        "variables": bit_variables(os.environ),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "gpu": properties.name,
            "gpu_index": device.index,
            "gpu_uuid": str(properties.uuid),
            "compute_capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "driver": _driver(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "nccl": ".".join(map(str, torch.cuda.nccl.version())) if torch.distributed.is_nccl_available() else None,
        }
    return found


def _vector_features() -> str:
    """The processor's vector and matrix instructions: libraries choose kernels by them."""
    listed = (_cpu_info("flags") or _cpu_info("Features")).split()
    return " ".join(sorted(word for word in listed if _VECTOR.match(word)))


_VECTOR = re.compile(r"amx|asimd|avx|bf16|f16c|fma|fphp|i8mm|sme(?!p)|sse|sve")


@lru_cache(maxsize=8)
def _cpu_info(name: str) -> str:
    """What the first processor's entry says under a name; empty where nothing does."""
    try:
        with open("/proc/cpuinfo") as file:
            return next((line.split(":", 1)[1].strip() for line in file if line.split(":")[0].strip() == name), "")
    except OSError:
        return ""


def _libc() -> str:
    """Its functions, sines and exponentials among them, are compiled anew for each version."""
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or "unknown"
    except (AttributeError, ValueError):
        return "unknown"


def _driver() -> str | None:
    try:
        with open("/proc/driver/nvidia/version") as file:
            words = file.readline().split()
        return next((word for word in words if word[0].isdigit() and "." in word), None)
    except OSError:
        return None
