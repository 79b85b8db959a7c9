"""A digest of all bytes of a tensor.

On the CPU it is SHA-256. On a GPU the bytes stay where they are: each block of 16,384 words of 32 bits is multiplied by
fixed random 64-bit keys and summed modulo 2^64, and SHA-256 is taken of the sums. This is multilinear hashing (Lemire
and Kaser, "Strongly universal string hashing is fast", 2014). Two blocks that differ have equal sums for at most one
key in 2^33. Unlike an XOR or a plain sum it sees elements that are swapped or doubled. It is no protection against
somebody who chooses the bytes to deceive it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

BLOCK = 1 << 14
_KEY_SEED = 20140827


def digest(tensor: Tensor) -> str:
    """The digest of one tensor's bytes in row-major order. Waits for the tensor's device."""
    return next(iter(digests([tensor])))


def digests(tensors: Iterable[Tensor]) -> list[str]:
    """The digest of each tensor; what lies on a GPU is summed there, and all sums come to the CPU in one copy."""
    listed = [_bytes_of(tensor) for tensor in tensors]
    sums = {number: _block_sums(flat) for number, flat in enumerate(listed) if flat.is_cuda}
    brought = _together(sums)
    return [
        hashlib.sha256(flat.numpy().data if number not in sums else next(brought)).hexdigest()
        for number, flat in enumerate(listed)
    ]


def _bytes_of(tensor: Tensor) -> Tensor:
    """The bytes as one flat tensor: a view where the tensor is dense."""
    plain = tensor.detach()
    if plain.layout != torch.strided or plain.is_meta:
        return torch.frombuffer(bytearray(repr((plain.layout, tuple(plain.shape))).encode()), dtype=torch.uint8)
    plain = plain.resolve_conj().resolve_neg()
    if hasattr(plain, "to_local"):
        plain = plain.to_local()
    return plain.contiguous().view(-1).view(torch.uint8) if plain.numel() else plain.new_empty(0, dtype=torch.uint8)


def _together(sums: dict[int, Tensor]) -> Iterator[Any]:
    """The sums of each tensor as bytes on the CPU, in the order of their numbers."""
    if not sums:
        return
    whole = torch.cat(list(sums.values())).cpu().numpy()
    at = 0
    for each in sums.values():
        yield whole[at : at + len(each)].tobytes()
        at += len(each)


def _block_sums(flat: Tensor) -> Tensor:
    """For each block of words the keyed sum, int64; the number of bytes comes last, so that zeros added are seen."""
    size = flat.numel()
    tail = flat[size // 4 * 4 :]
    padded = torch.nn.functional.pad(tail, (0, 4 - len(tail))).clone().view(torch.int32)
    aligned = flat[: size // 4 * 4]
    if aligned.data_ptr() % 4:
        aligned = aligned.clone()
    parts = [_keyed(words) for words in (aligned.view(torch.int32), padded) if len(words)]
    return torch.cat([*parts, torch.tensor([size], device=flat.device)])


def _keyed(words: Tensor) -> Tensor:
    kernel = _kernel() if words.is_cuda else None
    keys = _keys(words.device)
    blocks = -(-len(words) // BLOCK)
    if kernel is not None:
        sums = torch.empty(blocks, dtype=torch.int64, device=words.device)
        kernel[(blocks,)](words, keys, sums, len(words), BLOCK=BLOCK, PART=1024)
        return sums
    whole = len(words) // BLOCK
    found = [(row.to(torch.int64) * keys).sum(1) for row in words[: whole * BLOCK].view(-1, BLOCK).split(1024)]
    rest = words[whole * BLOCK :]
    if len(rest):
        found.append((rest.to(torch.int64) * keys[: len(rest)]).sum()[None])
    return torch.cat(found)


@lru_cache(maxsize=8)
def _keys(device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(_KEY_SEED)
    keys = torch.randint(-(2**63), 2**63 - 1, (BLOCK,), generator=generator, dtype=torch.int64)
    return keys.to(device)


@lru_cache(maxsize=1)
def _kernel() -> Any:
    """The same sums in one pass over the words, where Triton is installed: reading is then all that it costs."""
    try:
        import triton  # type: ignore[import-untyped]
        import triton.language as tl  # type: ignore[import-untyped]
    except ImportError:
        return None

    def keyed_sums(words, keys, sums, count, BLOCK: tl.constexpr, PART: tl.constexpr):  # type: ignore[no-untyped-def]
        block = tl.program_id(0).to(tl.int64)
        total = tl.zeros([PART], dtype=tl.int64)
        for start in range(0, BLOCK, PART):
            within = start + tl.arange(0, PART)
            at = block * BLOCK + within
            word = tl.load(words + at, mask=at < count, other=0).to(tl.int64)
            total += word * tl.load(keys + within)
        tl.store(sums + block, tl.sum(total, axis=0))

    # Triton reads the source of the function that it compiles, where names must be global.
    keyed_sums.__globals__["tl"] = tl
    return triton.jit(keyed_sums)
