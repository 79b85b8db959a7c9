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
from torch.nn import Parameter

# Words of 64 bits, each two halves of 32, in a block.
BLOCK = 1 << 13
# Blocks that are summed together, so that a key is read once for all of them.
_GROUP = 8
_HALF = 0xFFFFFFFF
_KEY_SEED = 19990815


def digest(tensor: Tensor) -> str:
    """The digest of one tensor's bytes in row-major order. Waits for the tensor's device."""
    return digests([tensor])[0]


def digests(tensors: Iterable[Tensor]) -> list[str]:
    """The digest of each tensor; what lies on a GPU is summed there, and all sums come to the CPU in one copy."""
    listed = [_dense(tensor) for tensor in tensors]
    found = {
        number: hashlib.sha256(_bytes_of(dense).numpy().data)
        for number, dense in enumerate(listed)
        if not dense.is_cuda
    }
    there = [number for number, dense in enumerate(listed) if dense.is_cuda]
    if there:
        on_gpu = [listed[number] for number in there]
        sums = _sums(on_gpu).cpu().numpy()
        # What does not fill a word is not in the sums.
        ends = [_bytes_of(dense)[dense.nbytes // 8 * 8 :] for dense in on_gpu if dense.nbytes % 8]
        rest = torch.cat(ends).cpu().numpy() if ends else numpy.empty(0, dtype=numpy.uint8)
        at = end = 0
        for number, dense in zip(there, on_gpu, strict=True):
            size = dense.nbytes
            blocks, over = -(-(size // 8) // BLOCK), size % 8
            found[number] = hashlib.sha256(f"{size} bytes".encode())
            found[number].update(sums[at : at + blocks].data)
            found[number].update(rest[end : end + over].data)
            at, end = at + blocks, end + over
    return [found[number].hexdigest() for number in range(len(listed))]


def _dense(tensor: Tensor) -> Tensor:
    """A tensor whose bytes lie one after the other, from where words may be read: mostly the tensor itself."""
    if tensor.layout != torch.strided or tensor.is_meta:
        return torch.frombuffer(bytearray(repr((tensor.layout, tuple(tensor.shape))).encode()), dtype=torch.uint8)
    plain = tensor if type(tensor) in (Tensor, Parameter) else tensor.detach()
    if plain.is_conj() or plain.is_neg():
        plain = plain.resolve_conj().resolve_neg()
    if type(plain) is not Parameter and hasattr(plain, "to_local"):
        plain = plain.to_local()
    plain = plain.contiguous()
    return plain.clone() if plain.is_cuda and plain.data_ptr() % 8 else plain


def _bytes_of(dense: Tensor) -> Tensor:
    if not dense.numel():
        return dense.new_empty(0, dtype=torch.uint8)
    # Not view(-1): a tensor of one element counts as contiguous with any stride, as t.expand(1) with 0.
    return dense.detach().as_strided((dense.numel(),), (1,)).view(torch.uint8)


def _sums(tensors: Sequence[Tensor]) -> Tensor:
    """The sum of each block of each tensor, one tensor after the other; what does not fill a word is left out."""
    device = tensors[0].device
    kernel = _kernel() if device.type == "cuda" else None
    if kernel is None:
        return torch.cat([_sums_by_operators(_bytes_of(dense)) for dense in tensors])
    addresses, counts = _table(tuple((dense.data_ptr(), dense.nbytes // 8) for dense in tensors), device)
    number = len(addresses)
    sums = torch.empty(number, dtype=torch.int64, device=device)
    if number:
        kernel[(-(-number // _GROUP),)](
            addresses, counts, _keys(device), sums, number, BLOCK=BLOCK, PART=256, GROUP=_GROUP
        )
    return sums


def _sums_by_operators(flat: Tensor) -> Tensor:
    words = flat[: flat.numel() // 8 * 8].view(torch.int64)
    if not len(words):
        return words
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

    def keyed_sums(addresses, counts, keys, sums, number, BLOCK: tl.constexpr, PART: tl.constexpr, GROUP: tl.constexpr):  # type: ignore[no-untyped-def]
        block = tl.program_id(0) * GROUP + tl.arange(0, GROUP)
        there = block < number
        words = tl.load(addresses + block, mask=there, other=0).to(tl.pointer_type(tl.int64))[:, None]
        count = tl.load(counts + block, mask=there, other=0)[:, None]
        total = tl.zeros([GROUP, PART], dtype=tl.int64)
        for start in range(0, BLOCK, PART):
            within = start + tl.arange(0, PART)[None, :]
            inside = within < count
            word = tl.load(words + within, mask=inside, other=0)
            key = tl.load(keys + within)
            low = ((word & 0xFFFFFFFF) + (key & 0xFFFFFFFF)) & 0xFFFFFFFF
            high = (((word >> 32) & 0xFFFFFFFF) + ((key >> 32) & 0xFFFFFFFF)) & 0xFFFFFFFF
            total += tl.where(inside, low * high, 0)
        tl.store(sums + block, tl.sum(total, axis=1), mask=there)

    # Triton reads the source of the function that it compiles, where names must be global.
    keyed_sums.__globals__["tl"] = tl
    return triton.jit(keyed_sums)
