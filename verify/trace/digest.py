"""A digest of all bytes of a tensor.

On the CPU it is SHA-256. On a GPU the bytes stay where they are. Each block of 64 KiB becomes one 64-bit sum of
products of keyed 32-bit words, ``sum((a + k) * (b + l))``, and SHA-256 is taken of the sums. This is NH, the universal
hash of UMAC (Black et al., CRYPTO 1999): two blocks that differ have equal sums for at most one key in 2^32. Unlike an
XOR or a plain sum it sees elements that are swapped or doubled. It is no protection against somebody who chooses the
bytes to deceive it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy
import torch
from torch import Tensor

# Words of 64 bits, each two halves of 32, in a block.
BLOCK = 1 << 13
_HALF = 0xFFFFFFFF
_KEY_SEED = 19990815


def digest(tensor: Tensor) -> str:
    """The digest of one tensor's bytes in row-major order. Waits for the tensor's device."""
    return digests([tensor])[0]


def digests(tensors: Iterable[Tensor]) -> list[str]:
    """The digest of each tensor; what lies on a GPU is summed there, and all sums come to the CPU in one copy."""
    listed = [_bytes_of(tensor) for tensor in tensors]
    found = {number: hashlib.sha256(flat.numpy().data) for number, flat in enumerate(listed) if not flat.is_cuda}
    there = [number for number, flat in enumerate(listed) if flat.is_cuda]
    if there:
        flats = [listed[number] for number in there]
        sums = _sums(flats).cpu().numpy()
        ends = torch.cat([flat[flat.numel() // 8 * 8 :] for flat in flats]).cpu().numpy()
        at = end = 0
        for number, flat in zip(there, flats, strict=True):
            size = flat.numel()
            blocks, rest = -(-(size // 8) // BLOCK), size % 8
            found[number] = hashlib.sha256(f"{size} bytes".encode())
            found[number].update(sums[at : at + blocks].data)
            found[number].update(ends[end : end + rest].data)
            at, end = at + blocks, end + rest
    return [found[number].hexdigest() for number in range(len(listed))]


def _bytes_of(tensor: Tensor) -> Tensor:
    """The bytes as one flat tensor: a view where the tensor is dense, and begins where words may be read."""
    plain = tensor.detach()
    if plain.layout != torch.strided or plain.is_meta:
        return torch.frombuffer(bytearray(repr((plain.layout, tuple(plain.shape))).encode()), dtype=torch.uint8)
    plain = plain.resolve_conj().resolve_neg()
    if hasattr(plain, "to_local"):
        plain = plain.to_local()
    if not plain.numel():
        return plain.new_empty(0, dtype=torch.uint8)
    flat = plain.contiguous().view(-1).view(torch.uint8)
    return flat.clone() if flat.is_cuda and flat.data_ptr() % 8 else flat


def _sums(flats: Sequence[Tensor]) -> Tensor:
    """The sum of each block of each tensor, one tensor after the other; what does not fill a word is left out."""
    device = flats[0].device
    kernel = _kernel() if device.type == "cuda" else None
    if kernel is None:
        return torch.cat([_sums_by_operators(flat) for flat in flats])
    addresses, counts = _table(tuple((flat.data_ptr(), flat.numel() // 8) for flat in flats), device)
    sums = torch.empty(len(addresses), dtype=torch.int64, device=device)
    if len(addresses):
        kernel[(len(addresses),)](addresses, counts, _keys(device), sums, BLOCK=BLOCK, PART=1024)
    return sums


def _sums_by_operators(flat: Tensor) -> Tensor:
    words = flat[: flat.numel() // 8 * 8].view(torch.int64)
    keys = _keys(flat.device)
    found = [torch.empty(0, dtype=torch.int64, device=flat.device)]
    for block in words.split(BLOCK):
        own = keys[: len(block)]
        low = ((block & _HALF) + (own & _HALF)) & _HALF
        high = ((block >> 32 & _HALF) + (own >> 32 & _HALF)) & _HALF
        found.append((low * high).sum()[None])
    return torch.cat(found)


@lru_cache(maxsize=4)
def _table(tensors: tuple[tuple[int, int], ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """For each block of all tensors, where it begins and how many words it holds."""
    blocks = numpy.array([-(-words // BLOCK) for _, words in tensors], dtype=numpy.int64)
    first = numpy.repeat(numpy.cumsum(blocks) - blocks, blocks)
    number = numpy.arange(blocks.sum(), dtype=numpy.int64) - first
    start = numpy.repeat(numpy.array([address for address, _ in tensors], dtype=numpy.int64), blocks)
    words = numpy.repeat(numpy.array([count for _, count in tensors], dtype=numpy.int64), blocks)
    counts = numpy.minimum(words - number * BLOCK, BLOCK)
    return torch.from_numpy(start + number * BLOCK * 8).to(device), torch.from_numpy(counts).to(device)


@lru_cache(maxsize=8)
def _keys(device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(_KEY_SEED)
    keys = torch.randint(-(2**63), 2**63 - 1, (BLOCK,), generator=generator, dtype=torch.int64)
    return keys.to(device)


@lru_cache(maxsize=1)
def _kernel() -> Any:
    """The same sums in one launch for all tensors, where Triton is installed: reading is then all that it costs."""
    try:
        import triton
        import triton.language as tl
    except ImportError:
        return None

    def keyed_sums(addresses, counts, keys, sums, BLOCK: tl.constexpr, PART: tl.constexpr):  # type: ignore[no-untyped-def]
        block = tl.program_id(0)
        words = tl.load(addresses + block).to(tl.pointer_type(tl.int64))
        count = tl.load(counts + block)
        total = tl.zeros([PART], dtype=tl.int64)
        for start in range(0, BLOCK, PART):
            within = start + tl.arange(0, PART)
            inside = within < count
            word = tl.load(words + within, mask=inside, other=0)
            key = tl.load(keys + within)
            low = ((word & 0xFFFFFFFF) + (key & 0xFFFFFFFF)) & 0xFFFFFFFF
            high = (((word >> 32) & 0xFFFFFFFF) + ((key >> 32) & 0xFFFFFFFF)) & 0xFFFFFFFF
            total += tl.where(inside, low * high, 0)
        tl.store(sums + block, tl.sum(total, axis=0))

    # Triton reads the source of the function that it compiles, where names must be global.
    keyed_sums.__globals__["tl"] = tl
    return triton.jit(keyed_sums)
