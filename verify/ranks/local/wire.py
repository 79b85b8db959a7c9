"""How tasks and results travel between the controller and its ranks.

Messages are pickled and go over a private socket pair, which no user's file ever reaches. Large tensors are
out-of-band buffers of the pickle, and travel beside it in anonymous shared memory: one copy, straight from the device.
The kernel frees that memory with its last user, so nothing is left behind whoever is killed.
"""

from __future__ import annotations

import io
import math
import mmap
import os
import pickle
import struct
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from types import TracebackType
from typing import Any

import numpy
import torch
from torch import Tensor

from verify.ranks.local.anonymous import open_nameless

# Tensors of so many bytes and more travel in shared memory.
LARGE = 1 << 20
_ALIGNMENT = 64
# What a frame is, bytes of shared memory that it names, and its number of out-of-band buffers; their sizes follow.
_HEADER = struct.Struct("<BQI")
# A message whose buffers, if any, are in the memory announced before; one whose memory follows; an announcement.
_MESSAGE, _WITH_MEMORY, _COMING = range(3)
# Of madvise(2), since Linux 5.14; Python has no name for it.
_POPULATE_WRITE = 23


class _Coming:
    """The one value that stands for an announcement."""


COMING = _Coming()


class Unreadable(Exception):
    """A message has arrived whole and cannot be turned back into what was sent; the text is the traceback."""


class _Pickler(pickle.Pickler):
    """Pickles tensors as a buffer, a dtype and a shape; buffers of :data:`LARGE` bytes and more go out of band."""

    def __init__(self, file: io.BytesIO, least: float = LARGE) -> None:
        super().__init__(file, protocol=5, buffer_callback=lambda buffer: buffer.raw().nbytes < least)
        self._least = least
        self.large: list[Tensor] = []

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, Tensor):
            return NotImplemented
        if obj.layout != torch.strided or obj.is_quantized or obj.device.type == "meta":
            raise TypeError(f"a {obj.layout} tensor on {obj.device} does not travel; send a dense one with values")
        if obj.nbytes >= self._least:
            self.large.append(obj)
            data = numpy.empty(obj.nbytes, dtype=numpy.uint8)  # Never touched: the bytes go straight to shared memory.
        else:
            data = _flat(obj).cpu().numpy()
        return _tensor, (pickle.PickleBuffer(data.data), obj.dtype, tuple(obj.shape))


def _tensor(data: bytearray | memoryview, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    if not len(data):
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(data, dtype=torch.uint8).view(dtype).view(shape)


@dataclass(frozen=True)
class Memory:
    """Shared memory for the large tensors of a message. Anonymous: the kernel frees it with its last user."""

    descriptor: int
    size: int

    @classmethod
    def of(cls, size: int) -> Memory:
        """As many bytes; they take no room before they are written."""
        memory = cls(open_nameless("verify-tensors"), size)
        try:
            os.ftruncate(memory.descriptor, size)
        except BaseException:
            memory.close()
            raise
        return memory

    def mapped(self) -> mmap.mmap:
        """The bytes as this process sees them, at hand at once; they outlive :meth:`close`."""
        shared = mmap.mmap(self.descriptor, self.size)
        with suppress(OSError):  # Older kernels cannot; the pages then come one by one, as they are touched.
            shared.madvise(_POPULATE_WRITE)
        return shared

    def close(self) -> None:
        """Lets go of it."""
        os.close(self.descriptor)


@dataclass(frozen=True)
class Packed:
    """A message ready to go: everything that can fail because of its content is over. Use it as a context manager.

    Attributes:
        data: the pickled message, after the header that says where its large tensors are.
        memory: what travels with it; None if there is none, or if it was announced.
    """

    data: bytes
    memory: Memory | None = None

    def __enter__(self) -> Packed:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.memory is not None:
            self.memory.close()


def pack(message: Any, announced: Memory | None = None) -> Packed:
    """Pickles a message, large tensors into shared memory. Tensors arrive on the CPU with the same bytes.

    A tensor of a subclass arrives as a plain one. Raises what pickling raises.

    Args:
        message: anything that pickles.
        announced: the memory that the receiver was told of; used if the tensors fit, and never closed here.
    """
    buffer = io.BytesIO()
    pickler = _Pickler(buffer)
    pickler.dump(message)
    sizes = [tensor.nbytes for tensor in pickler.large]
    size = sum(map(_aligned, sizes))
    if not size:
        return Packed(_header(_MESSAGE) + buffer.getbuffer())
    fits = announced is not None and size <= announced.size
    memory = announced if announced is not None and fits else Memory.of(size)
    data = _header(_MESSAGE if fits else _WITH_MEMORY, size, sizes) + buffer.getbuffer()
    packed = Packed(data, None if fits else memory)
    try:
        shared, offset = memory.mapped(), 0
        for tensor in pickler.large:
            target = torch.frombuffer(shared, dtype=torch.uint8, count=tensor.nbytes, offset=offset)
            target.copy_(_flat(tensor))
            offset += _aligned(tensor.nbytes)
    except BaseException:
        packed.__exit__(None, None, None)
        raise
    return packed


def to_bytes(message: Any) -> bytes:
    """A message for another machine: as :func:`pack`, with every tensor's bytes in it. Raises what pickling raises."""
    buffer = io.BytesIO()
    _Pickler(buffer, math.inf).dump(message)
    return buffer.getvalue()


def from_bytes(data: bytes) -> Any:
    """What :func:`to_bytes` was given, tensors on the CPU."""
    return pickle.loads(data)


def send(connection: Connection, packed: Packed, receiver: int) -> None:
    """Sends a packed message to process ``receiver``.

    Raises:
        BlockingIOError: the other end has not taken it in within the connection's time limit.
        OSError: the other end has gone.
    """
    connection.send_bytes(packed.data)
    if packed.memory is not None:
        send_handle(connection, packed.memory.descriptor, receiver)


def announce(connection: Connection, size: int, receiver: int) -> Memory | None:
    """Tells the receiver that tensors of ``size`` bytes will come, so that memory for them is ready when they do.

    The kernel takes tens of milliseconds to find and clear the pages of a trace: time in which the receiver only waits.
    None where there is no memory to be had: then nothing is announced, and nothing else has changed.

    Raises:
        BlockingIOError, OSError: as :func:`send`.
    """
    try:
        memory = Memory.of(-(-size // mmap.PAGESIZE) * mmap.PAGESIZE)
    except OSError:
        return None
    try:
        connection.send_bytes(_header(_COMING, memory.size))
        send_handle(connection, memory.descriptor, receiver)
    except BaseException:
        memory.close()
        raise
    return memory


class Inbox:
    """The receiving end of a connection."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._announced: mmap.mmap | None = None

    def receive(self) -> Any:
        """The next message; ``COMING`` if it was no more than an announcement of one.

        Raises:
            BlockingIOError: the rest of it did not come within the connection's time limit.
            EOFError, OSError: the other end has gone.
            Unreadable: it came whole and could not be unpickled.
        """
        data = self.connection.recv_bytes()
        kind, size, count = _HEADER.unpack_from(data)
        shared, self._announced = self._announced, None
        if kind == _COMING:
            self._announced = self._memory(size)
            return COMING
        if kind == _WITH_MEMORY:
            shared = self._memory(size)
        try:
            start = _HEADER.size + 8 * count
            sizes = struct.unpack_from(f"<{count}Q", data, _HEADER.size)
            return pickle.loads(memoryview(data)[start:], buffers=_buffers(shared, sizes))
        except (Exception, SystemExit):
            raise Unreadable(traceback.format_exc()) from None

    def _memory(self, size: int) -> mmap.mmap:
        try:
            descriptor = recv_handle(self.connection)
        except RuntimeError:
            raise EOFError("the other end has gone between a message and its memory") from None
        memory = Memory(descriptor, size)
        try:
            return memory.mapped()
        except OSError:  # For want of memory, or of descriptors: the sender has nothing to do with it.
            raise Unreadable(traceback.format_exc()) from None
        finally:
            memory.close()


def _header(kind: int, size: int = 0, sizes: Sequence[int] = ()) -> bytes:
    return _HEADER.pack(kind, size, len(sizes)) + struct.pack(f"<{len(sizes)}Q", *sizes)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _buffers(shared: mmap.mmap | None, sizes: Sequence[int]) -> Iterator[memoryview]:
    """The out-of-band buffers of a message, where they lie in ``shared``."""
    offset = 0
    for size in sizes:
        if shared is None:
            raise ValueError("the memory of a tensor did not come")
        yield memoryview(shared)[offset : offset + size]
        offset += _aligned(size)


def _flat(tensor: Tensor) -> Tensor:
    """The tensor's bytes in row-major order; what a lazily conjugated or negated one stands for, not what it holds."""
    return tensor.detach().resolve_conj().resolve_neg().contiguous().view(-1).view(torch.uint8)
