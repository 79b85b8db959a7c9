"""What a rank sets before anything can fix its bits, and what it then says of itself.

Every setting carries its reason. None of them makes a loop deterministic that is not: each removes a way in which two
ranks of one machine could come to run different kernels without anybody having asked for it.
"""

from __future__ import annotations

import os
import platform
import socket
from dataclasses import dataclass
from typing import Any

import torch

# Environment variables that can change bits or the order of arithmetic; the report shows those that are set.
BIT_VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "CUBLASLT_WORKSPACE_SIZE",
    "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_LAUNCH_BLOCKING",
    "CUDA_VISIBLE_DEVICES",
    "DNNL_MAX_CPU_ISA",
    "KMP_DETERMINISTIC_REDUCTION",
    "MKL_CBWR",
    "MKL_NUM_THREADS",
    "NCCL_ALGO",
    "NCCL_MIN_NCHANNELS",
    "NCCL_NVLS_ENABLE",
    "NCCL_PROTO",
    "NVIDIA_TF32_OVERRIDE",
    "OMP_NUM_THREADS",
    "ONEDNN_MAX_CPU_ISA",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "TORCH_BLAS_PREFER_CUBLASLT",
    "TORCHINDUCTOR_MAX_AUTOTUNE",
)


@dataclass(frozen=True)
class Setting:
    """One determinism setting and why it is made."""

    name: str
    value: str
    reason: str


ENVIRONMENT_SETTINGS = (
    Setting(
        "CUBLAS_WORKSPACE_CONFIG",
        ":4096:8",
        "cuBLAS may otherwise pick another algorithm when streams share its workspace (cuBLAS docs, reproducibility)",
    ),
    Setting(
        "NCCL_NVLS_ENABLE",
        "0",
        "NVLink multicast is a property of the machine's set-up; without it every machine moves bytes the same way",
    ),
    Setting("GLOO_SOCKET_IFNAME", "lo", "ranks of one machine need no resolvable host name"),
)

FLAG_SETTINGS = (
    Setting("use_deterministic_algorithms", "warn", "takes the reproducible variant of an operator where there is one"),
    Setting("fill_uninitialized_memory", "False", "would hide a loop that reads memory nothing wrote, and costs time"),
    Setting("cudnn.benchmark", "False", "each rank would time kernels for itself and could choose another"),
    Setting("cuda.matmul.allow_tf32", "False", "float32 products keep float32 inputs on every rank"),
    Setting("cudnn.allow_tf32", "False", "likewise for convolutions"),
)


def apply_environment() -> None:
    """Sets the variables that the user has not set; what libraries read once must be there before they load."""
    for setting in ENVIRONMENT_SETTINGS:
        os.environ.setdefault(setting.name, setting.value)


def apply_flags(threads: int) -> None:
    """Sets PyTorch's flags and the number of CPU threads."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.set_num_threads(threads)


def environment(device: torch.device, backend: str) -> dict[str, Any]:
    """What this process runs on: hardware, versions, flags and variables, JSON values only."""
    found: dict[str, Any] = {
        "host": socket.gethostname(),
        "device": device.type,
        "backend": backend,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu": _cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "flush_denormal": not bool(torch.tensor(2.0**-149) * 1.0),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "mkldnn": torch.backends.mkldnn.enabled,  # type: ignore[attr-defined]
        "variables": {name: os.environ[name] for name in BIT_VARIABLES if name in os.environ},
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        matmul = torch.backends.cuda.matmul
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
            "allow_tf32": matmul.allow_tf32,
            "bf16_reduced_precision_reduction": matmul.allow_bf16_reduced_precision_reduction,
            "fp16_reduced_precision_reduction": matmul.allow_fp16_reduced_precision_reduction,
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
        }
    return found


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), "unknown")
    except OSError:
        return platform.processor() or "unknown"


def _driver() -> str | None:
    try:
        with open("/proc/driver/nvidia/version") as file:
            words = file.readline().split()
        return next((word for word in words if word[0].isdigit() and "." in word), None)
    except OSError:
        return None
