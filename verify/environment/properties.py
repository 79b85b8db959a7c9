"""Every setting of this process or thread that can change bits and that can be changed while a loop runs: one table.

Reading never raises and costs little, so that it can be done at each step. PyTorch has two interfaces for the
precision of float32; once somebody has mixed them, the older one raises, and is then told as mixed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any

import torch
from torch import backends
from torch.backends import cuda
from torch.utils import _device, _python_dispatch

from verify.environment import arithmetic

MIXED = "unknown: the two precision interfaces are mixed"


class Kind(Enum):
    """What a setting means for a judgement."""

    ALIKE = "must be equal on all ranks"
    # Changed by a loop, it changes whatever is computed in this process afterwards, unseen by whoever computes.
    LEFT_ALONE = "must be equal on all ranks, and no loop may change it"
    SHOWN = "told beside bits that differ; harmless by itself"


@dataclass(frozen=True)
class Property:
    """One setting.

    Attributes:
        name: as PyTorch writes it, after ``torch.``, or in words.
        reason: how it can change bits, or why it is shown although it does not.
        read: what it is now, in this thread.
        write: puts a value back; None where nothing does.
        kind: what a difference means.
        slow: whether it is read only before and after a loop.
    """

    name: str
    reason: str
    read: Callable[[], Any]
    write: Callable[[Any], Any] | None = None
    kind: Kind = Kind.ALIKE
    slow: bool = False


# Not all of it is described for type checkers.
_C: Any = torch._C


def _attribute(name: str, reason: str) -> Property:
    """A setting that is an attribute, named as it is."""
    *parts, attribute = name.split(".")
    owner: Any = torch
    for part in parts:
        owner = getattr(owner, part)
    return Property(name, reason, lambda: getattr(owner, attribute), lambda value: setattr(owner, attribute, value))


def _precision(backend: str, operator: str) -> Property:
    get, put = _C._get_fp32_precision_getter, _C._set_fp32_precision_setter
    name = {"generic": "", "cuda": "cuda."}.get(backend, f"{backend}.") + ("" if operator == "all" else f"{operator}.")
    return Property(
        f"backends.{name}fp32_precision",
        f"float32 inputs of {backend} {operator} may be cut to TF32 or bfloat16",
        lambda: get(backend, operator),
        lambda value: put(backend, operator, value),
    )


def _nesting() -> int:
    torch.autocast_increment_nesting()
    return torch.autocast_decrement_nesting()


def _nest(depth: int) -> None:
    torch.clear_autocast_cache()
    for _ in range(_nesting() - depth):
        torch.autocast_decrement_nesting()


def _autocast(device: str) -> Property:
    return Property(
        f"autocast on {device}",
        "operators compute in another dtype",
        lambda: torch.is_autocast_enabled(device),
        lambda value: torch.set_autocast_enabled(device, value),
    )


def _autocast_dtype(device: str) -> Property:
    return Property(
        f"autocast dtype on {device}",
        "the dtype that operators compute in under autocast",
        lambda: torch.get_autocast_dtype(device),
        lambda value: torch.set_autocast_dtype(device, value),
    )


_guards: list[Any] = []


def _set_inference_mode(on: bool) -> None:
    # The mode has no setter; a guard that is entered and kept for good is one.
    _guards.append(_C._InferenceMode(on))
    _guards[-1].__enter__()


def _modes() -> str:
    modes = _python_dispatch._get_current_dispatch_mode_stack()
    return ", ".join(type(mode).__name__ for mode in modes) or "none"


_SPLIT = "a sum or product is split by thread, and the parts sum in another order"
_REDUCED = "partial sums of a product are kept in the narrow dtype"
_ATTENTION = "one more or one fewer implementation of attention to choose from"

_OPERATORS = ("all", "matmul", "conv", "rnn")

# In the order in which they are put back: the older precision interface first, the newer has the last word.
_TABLE: tuple[Callable[[], Property], ...] = (
    lambda: Property("threads", _SPLIT, torch.get_num_threads, torch.set_num_threads),
    lambda: Property(
        "interop_threads",
        "operators that run side by side; by default the number of cores, and no operator's own order changes",
        torch.get_num_interop_threads,
        kind=Kind.SHOWN,
    ),
    lambda: Property("default_dtype", "numbers without a dtype take it",
                     torch.get_default_dtype, torch.set_default_dtype),
    lambda: Property(
        "default_device",
        "tensors made without a device are made and computed there",
        lambda: _device.CURRENT_DEVICE,
        torch.set_default_device,
    ),
    lambda: Property(
        "deterministic_debug_mode",
        "takes the reproducible variant of an operator where there is one",
        torch.get_deterministic_debug_mode,
        # As torch.use_deterministic_algorithms, without its import of the whole compiler, which takes a second.
        torch.set_deterministic_debug_mode,
    ),
    lambda: _attribute("utils.deterministic.fill_uninitialized_memory", "memory that nothing wrote has other contents"),
    lambda: Property("float32_matmul_precision", "float32 products cut their inputs to TF32 or bfloat16; older name",
                     torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    lambda: _attribute("backends.cuda.matmul.allow_tf32", "float32 products on CUDA; older name"),
    lambda: _attribute("backends.cudnn.allow_tf32", "float32 convolutions on CUDA; older name"),
    *(
        partial(_precision, backend, operator)
        for backend, operators in (("generic", ("all",)), ("cuda", _OPERATORS), ("mkldnn", _OPERATORS))
        for operator in operators
    ),
    lambda: _attribute("backends.cudnn.enabled", "convolutions by another library"),
    lambda: _attribute("backends.cudnn.benchmark", "each rank times kernels and may choose another"),
    lambda: _attribute("backends.cudnn.benchmark_limit", "how many kernels are timed"),
    lambda: _attribute("backends.cudnn.deterministic", "which kernels may be chosen"),
    lambda: _attribute("backends.mkldnn.enabled", "products on the CPU by another library"),
    lambda: _attribute("backends.mkldnn.deterministic", "which kernels may be chosen"),
    lambda: Property("backends.nnpack", "convolutions by another library", _C._get_nnpack_enabled,
                     backends.nnpack.set_flags),
    lambda: _attribute("backends.cuda.matmul.allow_fp16_reduced_precision_reduction",
                       f"fp16: {_REDUCED}"),
    lambda: _attribute("backends.cuda.matmul.allow_bf16_reduced_precision_reduction",
                       f"bf16: {_REDUCED}"),
    lambda: _attribute("backends.cuda.matmul.allow_fp16_accumulation",
                       "fp16 products are summed in fp16"),
    lambda: Property("backends.cpu.allow_fp16_reduced_precision_reduction", f"fp16 on the CPU: {_REDUCED}",
                     _C._get_cpu_allow_fp16_reduced_precision_reduction,
                     _C._set_cpu_allow_fp16_reduced_precision_reduction),
    lambda: Property("backends.cuda.preferred_blas_library", "products by cuBLAS or cuBLASLt",
                     _C._get_blas_preferred_backend, cuda.preferred_blas_library),
    lambda: Property("backends.cuda.preferred_linalg_library", "decompositions by another library",
                     _C._get_linalg_preferred_backend, cuda.preferred_linalg_library),
    lambda: Property("SM carve-out", "products use fewer multiprocessors and other tiles",
                     _C._get_sm_carveout_experimental, _C._set_sm_carveout_experimental),
    lambda: Property("cuda.tunable", "each rank times kernels of products and may choose another",
                     _C._cuda_tunableop_is_enabled, _C._cuda_tunableop_enable),
    lambda: Property("flash attention", _ATTENTION, cuda.flash_sdp_enabled, cuda.enable_flash_sdp),
    lambda: Property("memory-efficient attention", _ATTENTION, cuda.mem_efficient_sdp_enabled,
                     cuda.enable_mem_efficient_sdp),
    lambda: Property("plain attention", _ATTENTION, cuda.math_sdp_enabled, cuda.enable_math_sdp),
    lambda: Property("cuDNN attention", _ATTENTION, cuda.cudnn_sdp_enabled, cuda.enable_cudnn_sdp),
    lambda: Property("another backend's attention", _ATTENTION, _C._get_overrideable_sdp_enabled,
                     _C._set_sdp_use_overrideable),
    lambda: Property("order of attentions", "which implementation of attention is tried first",
                     _C._get_sdp_priority_order, _C._set_sdp_priority_order),
    lambda: Property("plain attention reduces in fp16 or bf16", f"attention: {_REDUCED}",
                     cuda.fp16_bf16_reduction_math_sdp_allowed, cuda.allow_fp16_bf16_reduction_math_sdp),
    lambda: Property("fast path of nn.MultiheadAttention", "a fused kernel in place of several",
                     backends.mha.get_fastpath_enabled, backends.mha.set_fastpath_enabled),
    lambda: _attribute("backends.opt_einsum.enabled", "the order in which einsum contracts"),
    lambda: _attribute("backends.opt_einsum.strategy", "the order in which einsum contracts, by another search"),
    *(partial(_autocast, device) for device in ("cpu", "cuda")),
    *(partial(_autocast_dtype, device) for device in ("cpu", "cuda")),
    lambda: Property("autocast caches weights", "a weight that changes under autocast is used as it was",
                     torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled),
    lambda: Property("autocast nesting", "weights cast by autocast are kept until the outermost region ends",
                     _nesting, _nest, kind=Kind.SHOWN),
    lambda: Property("inference mode", "no operator computes otherwise; some refuse", torch.is_inference_mode_enabled,
                     _set_inference_mode, kind=Kind.SHOWN),
    lambda: Property("gradients", "recorded or not: some fused kernels are taken only without",
                     torch.is_grad_enabled, _C._set_grad_enabled, kind=Kind.SHOWN),
    lambda: Property("dispatch modes", "code that stands between a loop and PyTorch's operators", _modes,
                     kind=Kind.SHOWN),
    lambda: Property("rounding", "every result in this thread", arithmetic.rounding, arithmetic.round_as,
                     kind=Kind.LEFT_ALONE),
    lambda: Property("flush_denormal", "results and inputs near zero become zero in this thread",
                     arithmetic.flushes_subnormal, torch.set_flush_denormal, kind=Kind.LEFT_ALONE),
    lambda: Property("threads of large operators", "one thread of an operator may round or flush unlike the others",
                     arithmetic.threads_flush_or_round, kind=Kind.LEFT_ALONE, slow=True),
)  # fmt: skip


def read(setting: Property) -> Any:
    """What a setting is now, whatever has been done to PyTorch's precision interfaces."""
    try:
        return setting.read()
    except RuntimeError:
        return MIXED


def _known() -> tuple[Property, ...]:
    """The settings that this version of PyTorch has."""
    found: list[Property] = []
    for make in _TABLE:
        try:
            setting = make()
            read(setting)
        except (AttributeError, TypeError):
            continue
        found.append(setting)
    return tuple(found)


PROPERTIES = _known()
BY_NAME = {setting.name: setting for setting in PROPERTIES}


def said(value: Any) -> Any:
    """A value as JSON knows it. A device without its number: each rank has its own."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, torch.device):
        return value.type
    return str(value).removeprefix("torch.").lstrip("_")
