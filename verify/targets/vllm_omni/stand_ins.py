"""What must be replaced to run vllm-omni's code where parts of it cannot run. Everything else is its own.

Replaced are: on a CPU, the platform and whatever has only a GPU form; on a GPU without vllm's compiled extension or
without flash-attention, those two. Each replacement says so in the list it returns, which reports show.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import types
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_BAGEL = "vllm_omni.diffusion.models.bagel.bagel_transformer"


def before_import(device: torch.device) -> list[str]:
    """Before anything of vllm or vllm_omni is imported."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    said = []
    compiled = _has("vllm._C") or _has("vllm._C_stable_libtorch")
    if not compiled and torch.cuda.is_available():  # Also for --device cpu: vllm looks at the machine.
        _unspecified_vllm_platform()
        for name in ("_C", "_moe_C", "_C_stable_libtorch"):
            sys.modules.setdefault(f"vllm.{name}", types.ModuleType(f"vllm.{name}"))
        said.append("vllm's platform and compiled extension (not installed): unspecified platform, empty modules")
    if device.type == "cpu" or not compiled:
        said.append(_bare_package())
    if device.type == "cpu":
        said.append(_cpu_platform())
    return said


def vllm_config(device: torch.device, said: list[str]) -> Any:
    """vllm's configuration, which its layers read when they are built.

    Never compiled: on vllm 0.30 SiluAndMul would go to torch.compile, whose bits differ from eager's, and any dispatch
    mode that an observer pushes would turn it back to eager for the rest of the process: watching would change bits.
    """
    config = importlib.import_module("vllm.config")
    native = device.type == "cpu" or not _has("vllm._C")
    compilation = config.CompilationConfig(mode=config.CompilationMode.NONE, custom_ops=["none"] if native else [])
    said.append(
        "vllm's custom CUDA kernels: their native PyTorch forms, never torch.compile"
        if native
        else "torch.compile of vllm's layers: eager"
    )
    return config.VllmConfig(device_config=config.DeviceConfig(device=device.type), compilation_config=compilation)


def after_import(device: torch.device) -> list[str]:
    """Once vllm_omni's modules can be imported."""
    return [*_attention(device), *_rotary_embedding(device)]


def _attention(device: torch.device) -> list[str]:
    bagel = importlib.import_module(_BAGEL)
    if getattr(bagel, "flash_attn_varlen_func", "other attention") is None:
        setattr(bagel, "flash_attn_varlen_func", _sdpa_of_each_segment)  # noqa: B010  (the module has no such type)
        return ["flash_attn_varlen_func (not there): SDPA of each segment, causal mask aligned at the last key"]
    if hasattr(bagel, "flash_attn_varlen_func"):
        return []
    if device.type == "cuda" and not (_has("flash_attn") or _has("fa3_fwd_interface") or _has("vllm._C")):
        os.environ["DIFFUSION_ATTENTION_BACKEND"] = "TORCH_SDPA"
        return ["attention backend (no flash-attention installed): upstream's own SDPA backend"]
    if device.type == "cpu":
        sdpa = importlib.import_module("vllm_omni.diffusion.attention.backends.sdpa").SDPAImpl
        sdpa.forward = sdpa.forward_cuda
        return ["AttentionImpl.forward (no CPU case): upstream's SDPA backend, as on CUDA"]
    return []


def _rotary_embedding(device: torch.device) -> list[str]:
    """On CUDA vllm_omni takes this kernel from a part of vllm that is compiled; later versions can do without it."""
    if device.type == "cpu":
        return []
    try:
        importlib.import_module("vllm.vllm_flash_attn.layers.rotary")
        return []
    except ImportError:
        rope = importlib.import_module("vllm_omni.diffusion.layers.rope").RotaryEmbedding
    try:
        rope(is_neox_style=True)(torch.zeros(1, 1, 1, 2), torch.ones(1, 1), torch.zeros(1, 1))
        return []
    except ImportError:
        rope.forward_cuda = rope.forward_native
        return ["rotary embedding's kernel (vllm.vllm_flash_attn not compiled): upstream's own PyTorch form"]


def generation_dtype(dtype: torch.dtype) -> str:
    """Upstream's generation path names bfloat16 wherever it casts; in float32 the name must mean that.

    Returns what was replaced, in words; empty for bfloat16.
    """
    bagel = vars(importlib.import_module(_BAGEL))
    bagel["torch"] = torch if dtype is torch.bfloat16 else _TorchWithout(bfloat16=dtype)
    if dtype is torch.bfloat16:
        return ""
    return "torch.bfloat16 in the generation path: float32, and no autocast"


class _TorchWithout(types.ModuleType):
    """The module torch with some names meaning something else."""

    def __init__(self, **meanings: Any) -> None:
        super().__init__("torch")
        vars(self).update(meanings)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def _has(module: str) -> bool:
    """Whether a module could be imported; its parents are not imported to find out."""
    package, _, name = module.partition(".")
    if module in sys.modules:
        return bool(getattr(sys.modules[module], "__file__", None))
    spec = importlib.util.find_spec(package)
    if spec is None:
        return False
    if not name:
        return True
    folders = spec.submodule_search_locations or []
    return any(
        entry.name.partition(".")[0] == name
        for folder in folders
        if os.path.isdir(folder)
        for entry in os.scandir(folder)
    )


def _bare(package: str) -> types.ModuleType:
    """The package without what its ``__init__`` runs; its submodules are found as ever."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations is not None
    module = types.ModuleType(package)
    module.__path__ = list(spec.submodule_search_locations)
    module.__spec__ = spec
    return module


def _bare_package() -> str:
    sys.modules["vllm_omni"] = _bare("vllm_omni")
    return "vllm_omni/__init__.py (imports the serving stack, patches vllm): a bare package; its submodules are real"


def _unspecified_vllm_platform() -> None:
    """vllm's CUDA platform imports compiled modules, and vllm's own ``__init__`` asks for the platform."""
    sys.modules["vllm"] = _bare("vllm")
    try:
        platforms = importlib.import_module("vllm.platforms")
        interface = importlib.import_module("vllm.platforms.interface")
        vars(platforms)["_current_platform"] = interface.UnspecifiedPlatform()
    finally:
        del sys.modules["vllm"]


def _cpu_platform() -> str:
    platforms = importlib.import_module("vllm_omni.platforms")
    interface = importlib.import_module("vllm_omni.platforms.interface")

    class CpuOmniPlatform(interface.OmniPlatform):  # type: ignore[name-defined,misc]
        _omni_enum = interface.OmniPlatformEnum.UNSPECIFIED
        device_type = "cpu"
        device_name = "cpu"
        dist_backend = "gloo"

        @classmethod
        def get_diffusion_attn_backend_cls(cls, *_: Any, **__: Any) -> str:
            return "vllm_omni.diffusion.attention.backends.sdpa.SDPABackend"

        @classmethod
        def get_torch_device(cls, local_rank: int | None = None) -> torch.device:
            return torch.device("cpu")

        @classmethod
        def get_device_count(cls) -> int:
            return 1

        @classmethod
        def set_device(cls, device: Any) -> None:
            pass

        @classmethod
        def synchronize(cls) -> None:
            pass

        @classmethod
        def empty_cache(cls) -> None:
            pass

        @classmethod
        def supports_torch_inductor(cls) -> bool:
            return False

    vars(platforms)["_current_omni_platform"] = CpuOmniPlatform()
    return "current_omni_platform (none for a CPU): gloo, SDPA, native operators"


def _sdpa_of_each_segment(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    causal: bool = False,
) -> Tensor:
    """Attention of packed segments ``(rows, heads, channels)``; causal aligns the last query with the last key."""
    out = torch.empty_like(q)
    starts_q, starts_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    for q0, q1, k0, k1 in zip(starts_q, starts_q[1:], starts_k, starts_k[1:], strict=False):
        queries, keys, values = (x.transpose(0, 1).unsqueeze(0) for x in (q[q0:q1], k[k0:k1], v[k0:k1]))
        mask = None
        if causal:
            mask = torch.ones(q1 - q0, k1 - k0, dtype=torch.bool, device=q.device).tril(k1 - k0 - (q1 - q0))
        attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, enable_gqa=True)
        out[q0:q1] = attended[0].transpose(0, 1)
    return out
