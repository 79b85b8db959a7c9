"""Equality of bytes.

``==`` on floats calls ``+0.0`` and ``-0.0`` equal and a NaN different from itself; ``torch.equal`` and
``assert_close(rtol=0, atol=0)`` inherit that. Here shape and dtype are compared first, then integer views of the bytes.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from verify.verdict import Difference

UlpDistances: TypeAlias = "np.ma.MaskedArray[Any, np.dtype[np.uint64]]"

# So many read memory about as fast as it goes; waking more takes longer than they save.
FEW_THREADS = 8
_WORTH_THREADS = 1 << 23  # Bytes.
_VIEW_OF_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

# Called without Python's lock, so that threads really share the work.
_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]


def bits_of(tensor: Tensor) -> Tensor:
    """An integer view of a tensor's bytes, element for element, or two for one of 16 bytes; a real view whatever the
    strides.

    Of a lazily negated or conjugated tensor it is a view of a copy, which holds the bytes that the tensor stands for.

    Raises:
        TypeError: an element is not 1, 2, 4, 8 or 16 bytes wide.
    """
    plain = tensor.resolve_conj().resolve_neg()
    if plain.element_size() == 16:
        return torch.view_as_real(plain).view(torch.int64)
    view = _VIEW_OF_SIZE.get(plain.element_size())
    if view is None:
        raise TypeError(f"no integer view for {tensor.dtype}")
    return plain.view(view)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same shape, dtype and bytes. Synchronises when they lie on a GPU."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    bits_a, bits_b = bits_of(a.detach()), bits_of(b.detach())
    if bits_a.is_cpu and bits_b.is_cpu:
        return _same_bytes(bits_a.contiguous(), bits_b.contiguous())
    return torch.equal(bits_a, bits_b)


def _same_bytes(a: Tensor, b: Tensor) -> bool:
    """:func:`same_bits` of contiguous tensors of one size on the CPU.

    PyTorch would wake a thread a core, which takes longer than the comparison, and numpy writes down the result for
    every element. Memory is faster than one thread, so that a few share what is large.
    """
    size, at_a, at_b = a.nbytes, a.data_ptr(), b.data_ptr()
    if size < _WORTH_THREADS:
        return bool(_memcmp(at_a, at_b, size) == 0)
    threads = min(FEW_THREADS, len(os.sched_getaffinity(0)))
    part = -(-size // threads)

    def differs(start: int) -> bool:
        return bool(_memcmp(at_a + start, at_b + start, min(part, size - start)))

    with ThreadPoolExecutor(threads) as pool:
        return not any(pool.map(differs, range(0, size, part)))


@contextmanager
def few_threads() -> Iterator[None]:
    """PyTorch's operators on the CPU use no more than :data:`FEW_THREADS` inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, FEW_THREADS))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def first_unlike(a: Tensor, b: Tensor) -> int | None:
    """The first index along the first dimension at which :func:`same_bits` is false; None if it never is.

    Raises:
        ValueError: the dimension is longer in one than in the other, and they are alike as far as both go.
    """
    if same_bits(a, b):
        return None
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if not same_bits(x, y)), None)


def first_difference(a: Tensor, b: Tensor) -> Difference | None:
    """Where ``a`` and ``b`` first differ, or None if every byte agrees. The search runs only after a cheap comparison.

    Raises:
        ValueError: shapes or dtypes differ; those are findings of their own, told before any element is.
    """
    if a.shape != b.shape or a.dtype != b.dtype:
        raise ValueError(f"{a.dtype} {tuple(a.shape)} cannot be compared with {b.dtype} {tuple(b.shape)}")
    if same_bits(a, b):
        return None
    if a.is_complex():  # Told by its parts: the last index is 0 for the real one, 1 for the imaginary one.
        a, b = (torch.view_as_real(each.resolve_conj().resolve_neg()) for each in (a, b))
    bits_a, bits_b = bits_of(a), bits_of(b)
    where = (bits_a != bits_b).nonzero().cpu()
    if not len(where):
        raise AssertionError("the tensors were unequal a moment ago and no element of them differs")
    index = tuple(where[0].tolist())
    places = where.unbind(1)
    apart = ulp_distance(a[places].flatten(), b[places].flatten()) if a.is_floating_point() else None
    return Difference(
        index=index,
        bits=(_hex(bits_a[index]), _hex(bits_b[index])),
        values=(a[index].item(), b[index].item()),
        ulp=None if apart is None else apart[:1].tolist()[0],
        mismatched=len(where),
        of=a.numel(),
        max_ulp=None if apart is None or np.ma.getmaskarray(apart).any() else int(apart.max()),
    )


def ulp_distance(a: Tensor, b: Tensor) -> UlpDistances:
    """For each pair of elements, how many representable values apart they are; masked where either is a NaN.

    Exact for every float dtype, unsigned 64-bit: two float64 may lie further apart than int64 reaches. ``+0.0`` and
    ``-0.0`` are 1 apart: they are neighbours in the ordering of bytes, and not the same bytes.
    """
    places_a, places_b = _place_in_order(a), _place_in_order(b)
    apart = np.maximum(places_a, places_b) - np.minimum(places_a, places_b)
    return np.ma.MaskedArray(apart.astype(np.uint64), mask=(a.isnan() | b.isnan()).cpu().numpy())


def _place_in_order(tensor: Tensor) -> np.ndarray[Any, np.dtype[np.unsignedinteger[Any]]]:
    """Maps each float to an unsigned integer so that neighbouring floats are neighbours, -0.0 just below +0.0."""
    bits = bits_of(tensor.detach()).cpu().numpy().view(f"u{tensor.element_size()}")
    sign = bits.dtype.type(1 << (8 * tensor.element_size() - 1))
    # Floats hold a sign and a magnitude: below zero the order of the bytes is the reverse of that of the values.
    return np.where(bits & sign, ~bits, bits | sign)


def _hex(element: Tensor) -> str:
    width = 2 * element.element_size()
    mask = (1 << 4 * width) - 1
    return f"0x{int(element.item()) & mask:0{width}x}"


def describe(tensor: Any) -> str:
    """``float32 (4096, 64)`` for a tensor, the type's name for anything else."""
    if isinstance(tensor, Tensor):
        return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
    return type(tensor).__name__
