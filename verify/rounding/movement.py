"""How far an operator's result may move: one unit in the last place, or what its accumulation may be off by.

Legend: u the unit roundoff of a dtype, n the terms of a sum.

An operator that computes each element by itself moves it by at most one unit in the last place of the result's dtype.
One that sums moves it by units of the *size* of the sum, ``max(|y|, sqrt(sum of the squared terms))``. A sum that
cancels is small, and its error is not: an engine that adds its partial sums in the result's dtype, as tensor
parallelism does, rounds numbers of that size. The accumulation itself is off by ``sqrt(n) u`` of the size, where u is
that of the accumulator: float32 for half precision, the dtype itself otherwise. The factor ``sqrt(n)`` in place of the
worst case ``n`` is the probabilistic bound of Higham and Mary (SIAM J. Sci. Comput. 41, 2019), for roundings that are
independent and of mean zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from enum import Enum, auto
from functools import cache
from typing import Any

import torch
from torch import Tensor

# The unit roundoff.
UNITS = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24, torch.float64: 2.0**-53}
_HALF = (torch.bfloat16, torch.float16)


class Kind(Enum):
    """What an operator does to the numbers that it is given."""

    EXACT = auto()  # A copy, a choice, a sign: no rounding takes place.
    COPY = auto()  # Rounds where it narrows.
    ELEMENT = auto()  # Each element by itself.
    IN_PLACE = auto()  # Writes over what it is given.
    SUM = auto()  # Of products, or of what is given.
    MEAN = auto()
    POSITIVE = auto()  # A sum of numbers of one sign, or normed by such sums: the size is the result's own.
    ATTENTION = auto()


_EXACT = frozenset(
    """abs alias amax amin arange argmax argmin as_strided bernoulli bernoulli_ bitwise_and bitwise_not bitwise_or
    bucketize cat clamp clamp_ clamp_max clamp_min clone constant_pad_nd contiguous detach embedding empty empty_like
    empty_strided eq eye fill fill_ flip full full_like gather ge gt hardtanh index index_copy index_copy_ index_fill
    index_put index_put_ index_select isfinite isinf isnan le lift lift_fresh logical_and logical_not logical_or lt
    masked_fill masked_fill_ masked_scatter masked_select max maximum min minimum multinomial native_dropout ne neg
    neg_ new_empty new_full new_ones new_zeros nonzero normal_ one_hot ones ones_like pixel_shuffle pixel_unshuffle
    rand rand_like randint randint_like randn randn_like randperm relu relu_ repeat repeat_interleave resize_ roll
    scatter scatter_ select_scatter set_ sign slice_scatter sort stack take tile topk tril triu uniform_ unsafe_split
    where zero_ zeros zeros_like _local_scalar_dense _reshape_copy _unsafe_view""".split()  # noqa: SIM905  (a list of them would be three times as long)
)
_COPIES = frozenset({"_to_copy", "copy_", "copy"})
_SUMS = frozenset({"mm", "addmm", "bmm", "baddbmm", "addmv", "mv", "dot", "linear", "_scaled_mm", "convolution", "sum",
                   "cumsum", "_grouped_mm"})  # fmt: skip
_POSITIVE = frozenset({"linalg_vector_norm", "norm", "_softmax", "_log_softmax", "logsumexp", "var", "var_mean", "std",
                       "native_layer_norm", "native_group_norm", "_fused_rms_norm", "prod"})  # fmt: skip
_ATTENTION = ("_scaled_dot_product", "_flash_attention_forward", "_efficient_attention_forward", "_cudnn_attention")
_NO_ARITHMETIC = ("c10d", "_c10d_functional", "c10d_functional", "prim", "prims", "profiler")


@cache
def kind_of(func: Any) -> tuple[Kind, str]:
    """What an operator of PyTorch does, and its name without namespace and overload."""
    schema = func._schema
    name = schema.name.partition("::")[2]
    if func.is_view or func.namespace in _NO_ARITHMETIC or name in _EXACT:
        return Kind.EXACT, name
    if name in _COPIES:
        return Kind.COPY, name
    if schema.is_mutable:
        return Kind.IN_PLACE, name
    if name.startswith(_ATTENTION):
        return Kind.ATTENTION, name
    by_name = ((_SUMS, Kind.SUM), (frozenset({"mean"}), Kind.MEAN), (_POSITIVE, Kind.POSITIVE))
    return next((kind for names, kind in by_name if name in names), Kind.ELEMENT), name


def narrows(result: Tensor, arguments: Sequence[Any]) -> bool:
    """Whether a copy holds fewer digits than what it is made from, the last tensor that it is given."""
    sources = [each for each in arguments if isinstance(each, Tensor)]
    return bool(sources) and UNITS.get(sources[-1].dtype, 1.0) < UNITS[result.dtype]


def size_of(
    func: Callable[..., Any],
    kind: Kind,
    name: str,
    result: Tensor,
    arguments: Sequence[Any],
    named: Mapping[str, Any],
) -> Tensor:
    """Of what size the numbers are that an operator rounds, in units of which its result may move."""
    if kind in (Kind.ELEMENT, Kind.IN_PLACE, Kind.COPY):
        # An infinity, as masks hold them, stays one: times zero it would be a NaN.
        largest = torch.finfo(result.dtype).max
        return result.clamp(-largest, largest)
    if kind is Kind.POSITIVE:
        size = result
    else:
        if kind is Kind.ATTENTION:
            # Values weighted by probabilities: sqrt(sum p v^2). It bounds what rounded probabilities do to the result.
            squares = _first(func(*arguments[:2], arguments[2].square(), *arguments[3:], **named))
        else:
            # The squared terms add up by the same operator on squared inputs.
            squares = _first(func(*map(_squared, arguments), **named))
        if kind is Kind.MEAN:
            squares = squares / terms_of(name, result, arguments)
        size = torch.maximum(result.abs(), squares.abs().sqrt_().to(result.dtype))
    accumulator = torch.float32 if result.dtype in _HALF else result.dtype
    # Accumulating, in roundings of the result; for half precision it is next to nothing.
    accumulated = math.sqrt(terms_of(name, result, arguments)) * UNITS[accumulator] / UNITS[result.dtype]
    return size * math.sqrt(1.0 + accumulated**2) if accumulated > 0.01 else size


def terms_of(name: str, result: Tensor, arguments: Sequence[Any]) -> int:
    """How many terms each element of a sum has."""
    tensors = [each for each in arguments if isinstance(each, Tensor)]
    if name in ("addmm", "baddbmm", "addmv"):
        return int(tensors[1].shape[-1])
    if name == "convolution":
        return tensors[1][0].numel()
    if name.startswith(_ATTENTION):
        return int(tensors[1].shape[-2])
    if name in ("_softmax", "_log_softmax", "cumsum"):
        return int(tensors[0].shape[arguments[1]])
    if name in ("mm", "bmm", "mv", "dot", "linear", "_scaled_mm", "_grouped_mm"):
        return int(tensors[0].shape[-1])
    return max(1, tensors[0].numel() // max(1, result.numel()))


def _squared(value: Any) -> Any:
    """A tensor's squares; in float32 where they could leave float16's range."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    return value.float().square() if value.dtype is torch.float16 else value.square()


def _first(results: Any) -> Tensor:
    found = results[0] if isinstance(results, (tuple, list)) else results
    assert isinstance(found, Tensor)
    return found
