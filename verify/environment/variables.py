"""Environment variables: those that can change bits, those that are a rank's own, and all others.

Only the first are written into documents with their values. Of all others a document shows names at most: a value may
be a secret.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping

# Why each can change bits. A name that ends in * stands for all that begin so.
MATTERS = {
    "ATEN_*": "ATEN_CPU_CAPABILITY picks the vector instructions, and so the order of sums",
    "CUBLASLT_*": "cuBLASLt picks algorithms by its workspace",
    "CUBLAS_*": "cuBLAS picks algorithms by its workspace, and may emulate precisions",
    "CUDA_*": "CUDA_LAUNCH_BLOCKING and others change how kernels are chosen and ordered",
    "CUDNN_*": "cuDNN chooses kernels by them",
    "DIFFUSION_ATTENTION_BACKEND": "picks the attention kernels of an engine",
    "DISABLE_ADDMM_CUDA_LT": "sends addmm to another library",
    "DNNL_*": "oneDNN under its former name: instructions and precision",
    "FLASHINFER_*": "attention kernels are chosen by them",
    "FLASH_ATTENTION_*": "attention kernels are chosen by them",
    "GLIBC_TUNABLES": "hides processor features from the mathematical functions of the C library",
    "GOMP_*": "OpenMP's threads split sums",
    "HIPBLASLT_*": "picks algorithms on AMD's GPUs",
    "KMP_*": "OpenMP's threads split sums, KMP_DETERMINISTIC_REDUCTION orders them",
    "LD_AUDIT": "puts other functions in the place of a library's",
    "LD_BIND_NOW": "changes when functions are found in libraries, with LD_PRELOAD also which",
    "LD_PRELOAD": "puts other functions in the place of a library's",
    "MALLOC_PERTURB_": "fills memory that nothing wrote",
    "MIOPEN_*": "picks kernels on AMD's GPUs",
    "MKL_*": "MKL's instructions, threads and reproducibility mode",
    "NCCL_*": "algorithm, protocol and channels fix the order of a reduction",
    "NPY_*": "NumPy's vector instructions",
    "NUMBA_*": "compiled NumPy code: instructions, fast mathematics",
    "NUMEXPR_*": "threads split sums",
    "NVFUSER_*": "changes how operators are fused",
    "NVIDIA_TF32_OVERRIDE": "allows or forbids TF32 for every library",
    "OMP_*": "OpenMP's threads split sums",
    "ONEDNN_*": "ONEDNN_DEFAULT_FPMATH_MODE lowers the precision of products, ONEDNN_MAX_CPU_ISA picks instructions",
    "OPENBLAS_*": "kernels and threads",
    "PYTORCH_*": "allocators, tunable operators and fusions",
    "ROCBLAS_*": "picks algorithms on AMD's GPUs",
    "TENSILE_*": "picks algorithms on AMD's GPUs",
    "TORCHDYNAMO_*": "what is compiled",
    "TORCHINDUCTOR_*": "how it is compiled",
    "TORCH_*": "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE, TORCH_BLAS_PREFER_CUBLASLT and others choose precision and library",
    "TRITON_*": "how kernels are compiled",
    "VECLIB_MAXIMUM_THREADS": "threads split sums",
    "VLLM_ATTENTION_BACKEND": "picks the attention kernels of an engine",
    "VLLM_USE_*": "an engine's switches choose kernels",
    "XFORMERS_*": "attention kernels are chosen by them",
}

VISIBLE_DEVICES = ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")

# A rank's or a host's own: they differ between ranks that do the same.
OWN = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "ROLE_*", "*_RANK", "WORLD_SIZE", "*_WORLD_SIZE", "MASTER_*"),
    *("TORCHELASTIC_*", "SLURM*", "PMI*", "OMPI_*", "PRTE_*", "PRRTE_*", "ORTE_*", "MPI_*", "MPIR_*", "MV2_*"),
    *("HYDRA_*", "HYDI_*", "I_MPI_*", "PALS_*", "FLUX_*", "JSM_*", "LSB_*", "LS_*", "PBS_*", "ALPS_*", "RAY_*"),
    *("HOST", "HOSTNAME", "POD_*", "NODE_NAME", "KUBERNETES_*", "*_SERVICE_HOST", "*_SERVICE_PORT*", "*_PORT_*_TCP*"),
    *("SSH_*", "XDG_*", "DBUS_*", "USER", "LOGNAME", "HOME", "SHELL", "SHLVL", "PWD", "OLDPWD", "_"),
    *("TMPDIR", "TEMP", "TMP", "INVOCATION_ID", "JOURNAL_STREAM"),
    *("TERM*", "COLUMNS", "LINES", "DISPLAY", "WINDOWID", "TMUX*", "STY"),
    *VISIBLE_DEVICES,
    *("ZE_AFFINITY_MASK", "GOMP_CPU_AFFINITY", "KMP_AFFINITY", "OMP_PLACES", "OMP_PROC_BIND"),
    # Where bytes travel, not what they are.
    *("NCCL_SOCKET_IFNAME", "NCCL_IB_HCA", "NCCL_HOSTID", "NCCL_TOPO_FILE", "NCCL_DEBUG*", "NCCL_COMM_ID"),
    *("NCCL_ASYNC_ERROR_HANDLING", "GLOO_SOCKET_IFNAME", "TORCH_NCCL_*", "TORCH_FR_*", "TORCH_CPP_LOG_LEVEL"),
    # Each process may have a seed of its own, so that nothing relies on the order of a set.
    "PYTHONHASHSEED",
)

# Of what a library reads, what says where or how loudly and not what is computed; and what may be a secret.
_ELSEWHERE = re.compile(r"_(HOME|ROOT|PATH|DIRS?|FILE|URL|VERSION|VERBOSE|LOGS?|LOG_LEVEL|LOGGING_\w+)$|_CACHE_")
_SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|_KEY$|AUTH")


def _any_of(patterns: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(pattern).replace(r"\*", ".*") for pattern in patterns))


_MATTERS, _OWN = _any_of(MATTERS), _any_of(OWN)
# The length of a digest: enough to see that two values differ, too short to find a value by.
_DIGITS = 8


def is_own(name: str) -> bool:
    """Whether a variable may differ between ranks without a word."""
    return _OWN.fullmatch(name) is not None


def can_change_bits(name: str) -> bool:
    """Whether it is one of those that are known to matter."""
    matters = _MATTERS.fullmatch(name) is not None and not is_own(name)
    return matters and not (_ELSEWHERE.search(name) or _SECRET.search(name))


def bit_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """Those that are set and can change bits, and which GPUs a process is shown; in alphabetical order."""
    return {
        name: value for name, value in sorted(variables.items()) if can_change_bits(name) or name in VISIBLE_DEVICES
    }


def other_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """A short digest of every variable that is neither known to matter nor known to be a rank's own."""
    return {
        name: hashlib.sha256(value.encode(errors="surrogateescape")).hexdigest()[:_DIGITS]
        for name, value in sorted(variables.items())
        if not is_own(name) and not can_change_bits(name)
    }
