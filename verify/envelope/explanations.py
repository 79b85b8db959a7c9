"""Why a condition changes bits, where it was seen to; and what follows for two ranks."""

from __future__ import annotations

_SUM_ORDER = (
    "the norm sums squares in another order, and the factor it gives is one rounding off; everything it multiplies "
    "follows"
)
_KERNEL = "another kernel sums products in another order, or rounds an intermediate that the first one kept"
_PER_ELEMENT = "elementwise operations do not depend on it; only the norm does"

EXPLANATIONS = {
    ("threads", "combine"): f"{_SUM_ORDER}: a long sum is split by thread",
    ("threads", "forward"): "products are blocked by thread, and blocks sum in another order",
    ("alignment", "combine"): f"{_SUM_ORDER}: the vectorised part begins at an aligned address. {_PER_ELEMENT}",
    ("alignment", "forward"): f"{_KERNEL}: a product may choose its kernel by alignment",
    ("strides", "combine"): f"{_SUM_ORDER}: memory is walked in the order of its strides. Gathers return contiguous "
    "tensors, so ranks differ only if one of them views what another copies",
    ("strides", "forward"): f"{_KERNEL}: the layout of x_t reaches the first product",
    (
        "gathered slice",
        "combine",
    ): f"{_SUM_ORDER}: a slice of a gathered buffer need not be aligned as a fresh tensor is. "
    "Every rank must take its branches from the buffer in the same way",
    ("gathered slice", "forward"): _KERNEL,
    ("deterministic algorithms", "combine"): "an operator has another, reproducible variant",
    ("deterministic algorithms", "forward"): "an operator has another, reproducible variant",
    ("TF32", "combine"): "unexpected: the combine has no matrix product",
    (
        "TF32",
        "forward",
    ): "float32 products round their inputs to 10 bits of mantissa (TF32) or 7 (bf16, which `medium` also "
    "allows oneDNN on a CPU); a bf16 network has float32 products only outside its layers",
    ("reduced-precision sums", "combine"): "unexpected: the combine has no matrix product",
    (
        "reduced-precision sums",
        "forward",
    ): "a product split along its inner dimension adds its parts in the half format",
    ("denormal flush", "combine"): "subnormal inputs and results become zero on the rank that flushes",
    ("denormal flush", "forward"): "subnormal inputs and intermediate results become zero on the rank that flushes",
    (
        "autocast",
        "combine",
    ): "autocast lists torch.norm among what it computes in float32: on CUDA the factor of a half "
    "format then stays float32, and so does the result; a float64 velocity may be lowered",
    ("autocast", "forward"): "products are cast to the autocast dtype",
    (
        "dtype of the gather",
        "combine",
    ): "what is sent in a narrower dtype arrives rounded; a rank that kept its own branch "
    "unrounded would differ from those that received it",
    (
        "dtype of the gather",
        "forward",
    ): "x_t sent in a narrower dtype arrives rounded, and the network sees other inputs",
    ("oneDNN", "combine"): "unexpected: the combine has no matrix product",
    ("oneDNN", "forward"): _KERNEL,
    (
        "attention kernel",
        "forward",
    ): "kernels tile keys differently, so the running softmax is rescaled at other places. "
    "All ranks must choose the same: give the choice, do not leave it to a heuristic",
    ("CPU against GPU", "combine"): f"{_SUM_ORDER}: blocks of threads on a GPU, vectors on a CPU",
    ("CPU against GPU", "forward"): f"{_KERNEL}; exp, sin and cos differ too",
    ("another GPU", "combine"): f"{_SUM_ORDER}: another model of GPU launches another grid",
    ("another GPU", "forward"): f"{_KERNEL}: another model of GPU takes other kernels",
    ("CUDA graph", "combine"): "unexpected: a graph replays the kernels that were captured",
    ("CUDA graph", "forward"): "a library chose another kernel, or workspace, during capture",
    (
        "compile, default",
        "combine",
    ): "fused kernels keep intermediates in float32 where eager rounds each one to the dtype, "
    "contract multiply-adds, and reduce in their own order. A rank that compiles must not meet one that does not",
    ("compile, default", "forward"): "elementwise chains are fused and keep intermediates in float32; products stay",
    ("compile, max-autotune", "combine"): "as in the default mode; and each rank times kernels for itself, so even two "
    "compiled ranks may choose differently",
    (
        "compile, max-autotune",
        "forward",
    ): "as in the default mode; and products too are chosen by timing, for each rank by itself",
}


def explanation(condition: str, subject: str) -> str:
    """Why; a condition without a known reason says so."""
    return EXPLANATIONS.get((condition, subject), "no reason is known: look into it before relying on this setting")
