"""How tasks and results travel between the controller and its ranks.

Messages are pickled and go over a private socket pair, which no user's file ever reaches. Large tensors travel beside
them in anonymous shared memory: one copy, straight from the device; the kernel frees it with its last user, so nothing
is left behind whoever is killed.
"""

from __future__ import annotations

import io
import math
import mmap
import os
import pickle
import struct
import traceback
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

# Tensors of so many bytes and more travel in shared memory.
LARGE = 1 << 20
_ALIGNMENT = 64
# Where a message's large tensors are: nowhere, in memory that comes with it or came before it; or it only announces.
_HEADER = struct.Struct("<BQ")
_NONE, _OWN, _ANNOUNCED, _COMING = range(4)
# Of madvise(2), since Linux 5.14; Python has no name for it.
_POPULATE_WRITE = 23


class _Coming:
    """The one value that stands for an announcement."""


COMING = _Coming()


class Unreadable(Exception):
    """A message has arrived whole and cannot be turned back into what was sent; the text is the traceback."""


class _Pickler(pickle.Pickler):
    """Small tensors become bytes; those of ``large`` bytes and more become an offset into shared memory."""

    def __init__(self, file: io.BytesIO, large: float = LARGE) -> None:
        super().__init__(file, protocol=5)
        self._least = large
        self.large: list[tuple[int, Tensor]] = []
        self.size = 0

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, Tensor):
            return NotImplemented
        if obj.layout != torch.strided or obj.is_quantized or obj.device.type == "meta":
            raise TypeError(f"a {obj.layout} tensor on {obj.device} does not travel; send a dense one with values")
        if obj.nbytes < self._least:
            return _from_bytes, (_flat(obj).cpu().numpy().tobytes(), obj.dtype, tuple(obj.shape))
        offset = self.size
        self.large.append((offset, obj))
        self.size += -(-obj.nbytes // _ALIGNMENT) * _ALIGNMENT
        return _Placeholder, (offset, obj.nbytes, obj.dtype, tuple(obj.shape))


class _Unpickler(pickle.Unpickler):
    """Turns offsets into views of the shared memory."""

    def __init__(self, file: io.BytesIO, shared: mmap.mmap | None) -> None:
        super().__init__(file)
        self._shared = shared

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == (__name__, _Placeholder.__name__):
            # No method: the unpickler would hold itself, and the memory, until the next garbage collection.
            return partial(_view, self._shared)
        return super().find_class(module, name)


def _view(shared: mmap.mmap | None, offset: int, size: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    assert shared is not None, "the memory of a tensor did not come"
    return torch.frombuffer(shared, dtype=torch.uint8, count=size, offset=offset).view(dtype).view(shape)


class _Placeholder:
    """Named in a message where a large tensor belongs; never made."""


@dataclass(frozen=True)
class Memory:
    """Shared memory for the large tensors of a message. Anonymous: the kernel frees it with its last user."""

    descriptor: int
    size: int

    @classmethod
    def of(cls, size: int) -> Memory:
        """As many bytes; they take no room before they are written."""
        memory = cls(os.memfd_create("verify-tensors"), size)
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
    size = pickler.size
    if not size:
        return Packed(_header(_NONE, 0) + buffer.getbuffer())
    if announced is not None and size <= announced.size:
        memory, packed = announced, Packed(_header(_ANNOUNCED, size) + buffer.getbuffer())
    else:
        memory = Memory.of(size)
        packed = Packed(_header(_OWN, size) + buffer.getbuffer(), memory)
    try:
        shared = memory.mapped()
        for offset, tensor in pickler.large:
            flat = _flat(tensor)
            torch.frombuffer(shared, dtype=torch.uint8, count=len(flat), offset=offset).copy_(flat)
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
    return _Unpickler(io.BytesIO(data), None).load()


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
        where, size = _HEADER.unpack_from(data)
        shared, self._announced = self._announced, None
        if where == _COMING:
            self._announced = self._memory(size)
            return COMING
        if where == _OWN:
            shared = self._memory(size)
        try:
            return _Unpickler(io.BytesIO(data[_HEADER.size :]), shared).load()
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


def _header(where: int, size: int) -> bytes:
    return _HEADER.pack(where, size)


def _flat(tensor: Tensor) -> Tensor:
    """The tensor's bytes in row-major order; what a lazily conjugated or negated one stands for, not what it holds."""
    return tensor.detach().resolve_conj().resolve_neg().contiguous().view(-1).view(torch.uint8)


def _from_bytes(data: bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    if not data:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(dtype).view(shape)
