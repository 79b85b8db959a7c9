"""What this machine has, and which presets fit on it at which world size."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from verify.bagel.config import PRESETS, BagelConfig
from verify.bagel.model import BagelModel
from verify.environment.variables import bit_variables
from verify.errors import BadInput, Unjudged
from verify.expected import kind_of
from verify.limits import cpu_limit, memory_left, memory_limit, usable_cores
from verify.options.option import reproducing
from verify.options.table import COMMANDS
from verify.options.targets import given_options, split_options
from verify.ranks.local.lease import lock_folder
from verify.report.documents.machine import Doctor, Engine, Fits, Folder, Gpu, Guidance, Package
from verify.report.documents.parts import head
from verify.request import DenoiseRequest
from verify.targets.finding import find_target
from verify.targets.protocol import Target, default_loops, understood

_T = TypeVar("_T")

GIB = 2**30
MOST_RANKS = 64
# Beside the weights, a rank needs the CUDA context, the scratch space that weights are made in and one forward pass.
WORKING_BYTES = {"cpu": 1 * GIB, "cuda": 2 * GIB}
# Packages that a command or a test needs and torch does not bring along, and what goes without them.
PACKAGES = {
    "numpy": "everything",
    "filelock": "everything",
    "jaxtyping": "everything",
    "rich": "every command",
    "safetensors": "--checkpoint",
    "jinja2": "pages",
    "msgspec": "JSON documents",
    "hypothesis": "verify fuzz and the tests",
    "pytest": "the tests",
    "pytest-timeout": "the tests",
    "pytest-xdist": "the tests under -n",
    "nvidia-ml-py": "GPU clocks and power, if wanted",
}
ENGINES = ("vllm", "vllm_omni")
# Parts that a target may have: see verify.targets.protocol.Target.
OPTIONAL = ("branches", "schedule", "layout", "combine", "explain", "picture", "ignores", "any_world")
GUIDANCE: dict[str, dict[str, Any]] = {"text": {}, "text and image": {"cfg_img_scale": 1.5}}


def inspect_machine(target: str | None = None) -> Doctor:
    """What this machine has. Memory is in bytes; what cannot be found out is None.

    Imports no serving engine, unless that of ``target``: it only looks whether there is one.

    Raises:
        BadInput: ``target`` cannot be loaded.
    """
    gpus, trouble = _gpus()
    memory = available_memory()
    return Doctor(
        **head(reproducing("doctor", COMMANDS["doctor"], _named(target)), notes=_limits()),
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        torch=str(torch.__version__),
        cuda=torch.version.cuda,
        nccl=_try(lambda: ".".join(map(str, torch.cuda.nccl.version()))) if torch.version.cuda else None,
        backends=tuple(backends()),
        cores=usable_cores(),
        memory=memory,
        gpus=tuple(gpus),
        gpu_trouble=trouble,
        presets=tuple(preset_fits(name, memory, [gpu.free for gpu in gpus]) for name in PRESETS),
        packages=tuple(
            Package(name=name, version=package_version(name), needed_for=purpose) for name, purpose in PACKAGES.items()
        ),
        engines={name: importlib.util.find_spec(name) is not None for name in ENGINES},
        variables=bit_variables(os.environ),
        folders={
            "shared memory": folder(Path("/dev/shm")),
            "temporary files": folder(Path(tempfile.gettempdir())),
            "GPU leases": folder(_try(lock_folder)),
        },
        target=None if target is None else inspect_target(target),
    )


def _named(target: str | None) -> dict[str, Any]:
    return {} if target is None else {"target": split_options(target)[0], "target_option": given_options(target)}


def inspect_target(reference: str) -> Engine:
    """What of a target can be judged: its loops, and the kinds of guidance that it does not refuse.

    Raises:
        BadInput: it cannot be loaded.
    """
    target = find_target(reference)
    return Engine(
        reference=reference,
        name=target.name,
        loops={loop: kind_of(target.expects[loop]) for loop in default_loops(target)},
        offers=tuple(name for name in OPTIONAL if hasattr(target, name)),
        guidance=tuple(_guidance(target, kind, scales) for kind, scales in GUIDANCE.items()),
    )


def _guidance(target: Target, kind: str, scales: dict[str, Any]) -> Guidance:
    side = PRESETS["tiny"].side
    try:
        branches = understood(target, DenoiseRequest(height=side, width=side, **scales)).branches
        return Guidance(kind=kind, branches=tuple(branches), refusal="")
    except (BadInput, Unjudged) as refusal:
        return Guidance(kind=kind, branches=(), refusal=str(refusal))


def package_version(name: str) -> str | None:
    """The version installed; None if there is none."""
    return _try(lambda: importlib.metadata.version(name))


def backends() -> list[str]:
    """The communication backends that this torch has."""
    if not torch.distributed.is_available():
        return []
    found = {"gloo": torch.distributed.is_gloo_available(), "nccl": torch.distributed.is_nccl_available()}
    return [name for name, available in found.items() if available]


def preset_fits(name: str, memory: int | None, gpus: Sequence[int]) -> Fits:
    """How many ranks of a preset fit: in main memory, on GPUs of their own, and on GPUs that they share.

    Args:
        name: of the preset.
        memory: bytes that processes may still take; None if unknown.
        gpus: free bytes of each GPU.
    """
    weights = weight_bytes(PRESETS[name].config)
    on_cpu, on_gpu = weights + WORKING_BYTES["cpu"], weights + WORKING_BYTES["cuda"]
    least = min((free // on_gpu for free in gpus), default=0)
    return Fits(
        preset=name,
        weights=weights,
        cpu_ranks=None if memory is None else min(MOST_RANKS, memory // on_cpu),
        # Rank i goes to GPU i mod their number, so the fullest GPU decides.
        nccl_ranks=len(gpus) if least else 0,
        gloo_cuda_ranks=min(MOST_RANKS, least * len(gpus)),
    )


def weight_bytes(config: BagelConfig) -> int:
    """Bytes of a network in bfloat16, counted on one that takes no memory."""
    with torch.device("meta"):
        return 2 * sum(parameter.numel() for parameter in BagelModel(config).parameters())


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that new processes may still take: what the kernel offers, or what is left of a control group's limit."""
    offered = _try(lambda: _meminfo(root / "proc/meminfo")["MemAvailable"])
    return min((found for found in (offered, memory_left(root)) if found is not None), default=None)


def _limits() -> tuple[str, ...]:
    """What control groups grant this process, in words."""
    cpus, memory = cpu_limit(), memory_limit()
    granted = [f"{cpus:g} CPUs"] if cpus is not None else []
    granted += [f"{memory / GIB:.1f} GiB of memory"] if memory is not None else []
    return (f"a control group grants this process {' and '.join(granted)}",) if granted else ()


def _meminfo(path: Path) -> Mapping[str, int]:
    rows = (line.split() for line in path.read_text().splitlines())
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows if len(row) >= 2}


def _gpus() -> tuple[list[Gpu], str | None]:
    """Every GPU, and why they could not be asked if that is so."""
    gpus: list[Gpu] = []
    try:
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            free, total = torch.cuda.mem_get_info(index)
            capability = f"{properties.major}.{properties.minor}"
            gpus.append(Gpu(index=index, name=properties.name, capability=capability, memory=total, free=free))
    except RuntimeError as error:
        return gpus, f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return gpus, None


def folder(path: Path | None) -> Folder | None:
    """A folder's path, whether it can be written to and how many bytes are free; None if there is none."""
    if path is None or not path.is_dir():
        return None
    return Folder(path=str(path), writable=os.access(path, os.W_OK), free=shutil.disk_usage(path).free)


def _try(probe: Callable[[], _T]) -> _T | None:
    """What ``probe`` finds; None if this machine does not say. A doctor that dies of what it looks for is no use."""
    try:
        return probe()
    except (OSError, ImportError, LookupError, ValueError, RuntimeError, AttributeError):
        return None
