"""Why a condition changes bits, where it was seen to, and what follows for two ranks."""

from __future__ import annotations

_SUM_ORDER = (
    "the norm sums squares in another order, and the factor it gives is one rounding off; everything it multiplies "
    "follows"
)
_KERNEL = "another kernel sums products in another order, or rounds an intermediate that the first one kept"

# For each condition: why it changes the bits of the combine, and those of a forward pass.
_WHY = {
    "threads": (
        f"{_SUM_ORDER}: a long sum is split by thread",
        "products are blocked by thread, and blocks sum in another order",
    ),
    "alignment": (
        f"{_SUM_ORDER}: the vectorised part begins at an aligned address. elementwise operations do not depend"
        " on it; only the norm does",
        f"{_KERNEL}: a product may choose its kernel by alignment",
    ),
    "strides": (
        f"{_SUM_ORDER}: memory is walked in the order of its strides. Gathers return contiguous tensors, so "
        "ranks differ only if one of them views what another copies",
        f"{_KERNEL}: the layout of x_t reaches the first product",
    ),
    "gathered slice": (
        f"{_SUM_ORDER}: a slice of a gathered buffer need not be aligned as a fresh tensor is. Every rank must"
        " take its branches from the buffer in the same way",
        _KERNEL,
    ),
    "deterministic algorithms": (
        "an operator has another, reproducible variant",
        "an operator has another, reproducible variant",
    ),
    "TF32": (
        "unexpected: the combine has no matrix product",
        "float32 products round their inputs to 10 bits of mantissa (TF32) or 7 (bf16, which `medium` also "
        "allows oneDNN on a CPU); a bf16 network has float32 products only outside its layers",
    ),
    "reduced-precision sums": (
        "unexpected: the combine has no matrix product",
        "a product split along its inner dimension adds its parts in the half format",
    ),
    "denormal flush": (
        "subnormal inputs and results become zero on the rank that flushes",
        "subnormal inputs and intermediate results become zero on the rank that flushes",
    ),
    "autocast": (
        "autocast lists torch.norm among what it computes in float32: on CUDA the factor of a half format "
        "then stays float32, and so does the result; a float64 velocity may be lowered",
        "products are cast to the autocast dtype",
    ),
    "dtype of the gather": (
        "what is sent in a narrower dtype arrives rounded; a rank that kept its own branch unrounded would "
        "differ from those that received it",
        "x_t sent in a narrower dtype arrives rounded, and the network sees other inputs",
    ),
    "oneDNN": (
        "unexpected: the combine has no matrix product",
        _KERNEL,
    ),
    "attention kernel": (
        "",
        "kernels tile keys differently, so the running softmax is rescaled at other places. All ranks must "
        "choose the same: give the choice, do not leave it to a heuristic",
    ),
    "CPU against GPU": (
        f"{_SUM_ORDER}: blocks of threads on a GPU, vectors on a CPU",
        f"{_KERNEL}; exp, sin and cos differ too",
    ),
    "another GPU": (
        f"{_SUM_ORDER}: another model of GPU launches another grid",
        f"{_KERNEL}: another model of GPU takes other kernels",
    ),
    "CUDA graph": (
        "unexpected: a graph replays the kernels that were captured",
        "a library chose another kernel, or workspace, during capture",
    ),
    "compile, default": (
        "fused kernels keep intermediates in float32 where eager rounds each one to the dtype, contract "
        "multiply-adds, and reduce in their own order. A rank that compiles must not meet one that does not",
        "elementwise chains are fused and keep intermediates in float32; products stay",
    ),
    "compile, max-autotune": (
        "as in the default mode; and each rank times kernels for itself, so even two compiled ranks may "
        "choose differently",
        "as in the default mode; and products too are chosen by timing, for each rank by itself",
    ),
}
EXPLANATIONS = {
    (condition, subject): why
    for condition, both in _WHY.items()
    for subject, why in zip(("combine", "forward"), both, strict=True)
    if why
}


def explanation(condition: str, subject: str) -> str:
    """Why ``condition`` changes the bits of ``subject``. A condition without a known reason says so."""
    return EXPLANATIONS.get((condition, subject), "no reason is known: look into it before relying on this setting")
