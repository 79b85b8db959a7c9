"""How tasks and results travel between the controller and its ranks.

Messages are pickled and go over a private socket pair, which no user's file ever reaches. Large tensors travel beside
them in anonymous shared memory: one copy, straight from the device; the kernel frees it with its last user, so nothing
is left behind whoever is killed.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any

import torch
from torch import Tensor

_LARGE = 1 << 20
_ALIGNMENT = 64


class _Pickler(pickle.Pickler):
    """Small tensors become bytes; large ones become an offset into shared memory."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=5)
        self.large: list[tuple[int, Tensor]] = []
        self.size = 0

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, Tensor):
            return NotImplemented
        if obj.nbytes < _LARGE:
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


def send(connection: Connection, message: Any, receiver: int) -> None:
    """Sends a message to process ``receiver``; tensors arrive on the CPU with the same bytes.

    Raises:
        OSError: the other end has gone.
    """
    buffer = io.BytesIO()
    pickler = _Pickler(buffer)
    pickler.dump(message)
    head = pickler.size.to_bytes(8, "little")
    if not pickler.size:
        connection.send_bytes(head + buffer.getbuffer())
        return
    descriptor = os.memfd_create("verify-trace")
    try:
        os.ftruncate(descriptor, pickler.size)
        shared = mmap.mmap(descriptor, pickler.size)
        for offset, tensor in pickler.large:
            flat = _flat(tensor)
            torch.frombuffer(shared, dtype=torch.uint8, count=len(flat), offset=offset).copy_(flat)
        # Nothing slow between the two, so that a receiver may bound its wait for the second.
        connection.send_bytes(head + buffer.getbuffer())
        send_handle(connection, descriptor, receiver)
    finally:
        os.close(descriptor)


def receive(connection: Connection) -> Any:
    """The next message.

    Raises:
        EOFError: the other end has gone.
    """
    data = connection.recv_bytes()
    size = int.from_bytes(data[:8], "little")
    shared = None
    if size:
        descriptor = recv_handle(connection)
        shared = mmap.mmap(descriptor, size)
        os.close(descriptor)
    return _Unpickler(io.BytesIO(data[8:]), shared).load()


def _flat(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().view(-1).view(torch.uint8)


def _from_bytes(data: bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    if not data:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(dtype).view(shape)

