"""How messages travel: large tensors in shared memory that may be announced, with every byte as it was."""

from __future__ import annotations

import mmap
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from torch import Tensor

from verify.bits import same_bits
from verify.ranks.local import wire

LARGE_TENSOR = torch.arange(5 * (1 << 20) + 3, dtype=torch.int32).view(torch.float32)


@dataclass
class Wire:
    """Both ends of a connection, in one process."""

    sender: Connection
    inbox: wire.Inbox

    def send(self, message: object, announced: wire.Memory | None = None) -> wire.Packed:
        with wire.pack(message, announced) as packed:
            wire.send(self.sender, packed, os.getpid())
        return packed

    def announce(self, size: int) -> wire.Memory:
        memory = wire.announce(self.sender, size, os.getpid())
        assert memory is not None
        assert self.inbox.receive() is wire.COMING
        return memory


@pytest.fixture
def ends() -> Iterator[Wire]:
    """A connection; whatever shared memory was opened on it must be closed again."""
    before = _open_memory()
    ours, theirs = socket.socketpair()
    with Connection(ours.detach()) as sender, Connection(theirs.detach()) as receiver:
        yield Wire(sender, wire.Inbox(receiver))
    assert _open_memory() == before


def _open_memory() -> int:
    """Descriptors of tensors' shared memory that this process holds."""
    return sum("verify-tensors" in os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink())


@pytest.mark.parametrize(
    "tensor",
    [
        LARGE_TENSOR,
        LARGE_TENSOR[::2],
        LARGE_TENSOR[: 1 << 20].view(1 << 10, 1 << 10).T,
        torch.tensor([0.0, -0.0, float("nan")]).repeat(1 << 19),
        torch.randn(1 << 18, dtype=torch.complex128).conj(),
        torch.tensor([1.0, -0.0]),
        torch.empty(0),
    ],
    ids=["large", "every second", "transposed", "zeros and NaNs", "conjugated", "small", "empty"],
)
@pytest.mark.parametrize("announced", [False, True])
def test_tensors_arrive_with_the_same_bytes(ends: Wire, tensor: Tensor, announced: bool) -> None:
    memory = ends.announce(1 << 26) if announced else None
    ends.send({"x_t": tensor, "also": [tensor]}, memory)
    if memory is not None:
        memory.close()
    arrived = ends.inbox.receive()
    for each in (arrived["x_t"], arrived["also"][0]):
        whole = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
        assert same_bits(torch.view_as_real(each) if each.is_complex() else each, whole)


def test_what_was_announced_is_where_tensors_are_written(ends: Wire) -> None:
    memory = ends.announce(LARGE_TENSOR.nbytes)
    packed = ends.send(LARGE_TENSOR, memory)
    assert packed.memory is None  # Nothing else travels.
    arrived = ends.inbox.receive()
    mapped = torch.frombuffer(memory.mapped(), dtype=torch.float32, count=arrived.numel())
    mapped[7] = 1234.5
    assert arrived[7] == 1234.5
    memory.close()


def test_what_does_not_fit_brings_its_own_memory(ends: Wire) -> None:
    memory = ends.announce(LARGE_TENSOR.nbytes - mmap.PAGESIZE)
    assert ends.send(LARGE_TENSOR, memory).memory is not None
    memory.close()
    assert same_bits(ends.inbox.receive(), LARGE_TENSOR)


def test_an_announcement_holds_for_one_message(ends: Wire) -> None:
    memory = ends.announce(LARGE_TENSOR.nbytes)
    ends.send("an exception, say")
    assert ends.inbox.receive() == "an exception, say"
    ends.send(LARGE_TENSOR, memory)
    memory.close()
    with pytest.raises(wire.Unreadable):
        ends.inbox.receive()


def test_a_tensor_that_cannot_travel_leaves_no_memory_open(ends: Wire) -> None:
    with pytest.raises(TypeError, match="does not travel"):
        ends.send([LARGE_TENSOR, torch.empty(3, device="meta")])
