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
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

_LARGE = 1 << 20
_ALIGNMENT = 64


class Unreadable(Exception):
    """A message has arrived whole and cannot be turned back into what was sent; the text is the traceback."""


class _Pickler(pickle.Pickler):
    """Small tensors become bytes; those of ``large`` bytes and more become an offset into shared memory."""

    def __init__(self, file: io.BytesIO, large: float = _LARGE) -> None:
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
            return self._view
        return super().find_class(module, name)

    def _view(self, offset: int, size: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        assert self._shared is not None
        return torch.frombuffer(self._shared, dtype=torch.uint8, count=size, offset=offset).view(dtype).view(shape)


class _Placeholder:
    """Named in a message where a large tensor belongs; never made."""


@dataclass
class Packed:
    """A message ready to go: everything that can fail because of its content is over. Use it as a context manager."""

    data: bytes
    descriptor: int | None = None

    def __enter__(self) -> Packed:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


def pack(message: Any) -> Packed:
    """Pickles a message, large tensors into shared memory. Tensors arrive on the CPU with the same bytes.

    A tensor of a subclass arrives as a plain one. Raises what pickling raises.
    """
    buffer = io.BytesIO()
    pickler = _Pickler(buffer)
    pickler.dump(message)
    data = pickler.size.to_bytes(8, "little") + buffer.getbuffer()
    if not pickler.size:
        return Packed(data)
    packed = Packed(data, os.memfd_create("verify-tensors"))
    try:
        assert packed.descriptor is not None
        os.ftruncate(packed.descriptor, pickler.size)
        shared = mmap.mmap(packed.descriptor, pickler.size)
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
    if packed.descriptor is not None:
        send_handle(connection, packed.descriptor, receiver)


def receive(connection: Connection) -> Any:
    """The next message.

    Raises:
        BlockingIOError: the rest of it did not come within the connection's time limit.
        EOFError, OSError: the other end has gone.
        Unreadable: it came whole and could not be unpickled.
    """
    data = connection.recv_bytes()
    size = int.from_bytes(data[:8], "little")
    shared = None
    if size:
        try:
            descriptor = recv_handle(connection)
        except RuntimeError:
            raise EOFError("the other end has gone between a message and its memory") from None
        shared = mmap.mmap(descriptor, size)
        os.close(descriptor)
    try:
        return _Unpickler(io.BytesIO(data[8:]), shared).load()
    except (Exception, SystemExit):
        raise Unreadable(traceback.format_exc()) from None


def _flat(tensor: Tensor) -> Tensor:
    """The tensor's bytes in row-major order; what a lazily conjugated or negated one stands for, not what it holds."""
    return tensor.detach().resolve_conj().resolve_neg().contiguous().view(-1).view(torch.uint8)


def _from_bytes(data: bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    if not data:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(dtype).view(shape)
