"""Which payloads of a gather are what the network returned, and which are not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from verify.bits import same_bits
from verify.trace.payloads import PayloadWatch, Sent

Change = Callable[[Tensor], Tensor]


def velocity(seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Numbers of all sizes, some of which no other 16-bit format holds."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(6, 4, generator=generator) * torch.logspace(-9, 4, 6)[:, None]).to(dtype)


def sent(change: Change, cast: Change | None = None, dtype: torch.dtype = torch.bfloat16) -> Sent:
    """What is noted of three gathers, of which the second, in step 5, is given ``change`` of the velocity."""
    watch = PayloadWatch(cast)
    for step, entering in ((4, cast or _as_it_is), (5, change), (6, cast or _as_it_is)):
        own = velocity(step, dtype)
        watch.computed(step, "text", own)
        watch.gathered(step, entering(own))
    return watch.record()


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


LOSSLESS: dict[str, Change] = {
    "as it is": _as_it_is,
    "another shape": lambda v: v.view(2, 12),
    "another layout": lambda v: v.t().contiguous().t(),
    "bytes": lambda v: v.view(torch.uint8),
    "integers of its size": lambda v: v.view(torch.int16),
    "bits of another format": lambda v: v.view(torch.float16),
    "float32": lambda v: v.float(),
    "float64": lambda v: v.double(),
    "negated twice": lambda v: torch._neg_view(-v),
}


@pytest.mark.parametrize("form", LOSSLESS)
def test_what_loses_nothing(form: str) -> None:
    assert sent(LOSSLESS[form]).unlike == 0
    assert sent(LOSSLESS[form]).gathers == 3


LOSSY: dict[str, Change] = {
    "float16": lambda v: v.half(),
    "float8": lambda v: v.to(torch.float8_e4m3fn),
    "bytes of float8": lambda v: v.to(torch.float8_e4m3fn).view(torch.uint8),
    "scaled": lambda v: v * 1.25,
    "permuted": lambda v: v.flip(0),
    "transposed": lambda v: v.t().contiguous(),
    "float32 of another": lambda v: v.float() + 1e-9,
    "cut": lambda v: v[:, 1:].contiguous(),
    "zeros": torch.zeros_like,
    "something else": lambda v: torch.zeros(1),
    "with more": lambda v: torch.cat([v, v]),
    "a bit off": lambda v: (v.view(torch.int16) ^ 1).view(v.dtype),
}


@pytest.mark.parametrize("form", LOSSY)
def test_what_loses_something(form: str) -> None:
    found = sent(LOSSY[form])
    assert (found.gathers, found.unlike, found.step, found.branch) == (3, 1, 5, "text")
    assert found.due == "bfloat16 (6, 4)"


def test_the_first_element_and_both_values() -> None:
    found = sent(lambda v: torch.where(torch.arange(24).view(6, 4) == 9, v * 2, v))
    own = velocity(5)
    assert found.difference is not None
    assert (found.difference.index, found.difference.mismatched) == ((2, 1), 1)
    assert found.difference.values == (own[2, 1].item(), own[2, 1].item() * 2)
    # Of another format, the values are told as float64.
    other = sent(lambda v: v.half()).difference
    assert other is not None
    index = other.index
    assert other.values == (own[index].item(), own.half()[index].item())
    assert sent(lambda v: torch.zeros(1)).difference is None


def test_float16_is_another_format_even_where_the_values_are_the_same() -> None:
    watch = PayloadWatch()
    watch.computed(0, "gen", torch.ones(3, dtype=torch.bfloat16))
    watch.gathered(0, torch.ones(3, dtype=torch.float16))
    found = watch.record()
    assert (found.unlike, found.given, found.due, found.difference) == (1, "float16 (3,)", "bfloat16 (3,)", None)


def test_a_target_says_what_its_loops_send() -> None:
    half: Change = lambda v: v.half()  # noqa: E731
    assert sent(half, cast=half).unlike == 0
    assert sent(_as_it_is, cast=half).unlike == 1


def test_a_write_to_the_velocity_before_it_is_sent() -> None:
    assert sent(lambda v: v.mul_(2)).unlike == 1


def test_several_velocities_in_any_order_at_once_or_in_pieces() -> None:
    a, b = velocity(1), velocity(2)
    for entering in ([a, b], [b, a], [torch.cat([a, b])], [torch.stack([a, b])], [a[:2], a[2:], b[:5], b[5:]]):
        watch = PayloadWatch()
        watch.computed(3, "gen", a)
        watch.computed(3, "text", b)
        for tensor in entering:
            watch.gathered(3, tensor)
        assert watch.record().unlike == 0
    watch = PayloadWatch()
    watch.computed(3, "gen", a)
    watch.gathered(3, a)
    watch.gathered(3, a)  # A rank without a branch in the last round sends its last one again.
    watch.computed(4, "gen", b)
    watch.gathered(4, a)
    assert (watch.record().unlike, watch.record().step) == (1, 4)


def test_nothing_computed_nothing_compared() -> None:
    watch = PayloadWatch()
    watch.gathered(0, torch.zeros(1))
    assert watch.record() == Sent()


def test_velocities_that_are_never_sent_are_not_kept() -> None:
    watch = PayloadWatch()
    for step in range(9):
        watch.computed(step, "gen", velocity(step))
    assert len(watch._own) == 1 and same_bits(watch._own["gen"], velocity(8))


def test_the_device_is_not_waited_for() -> None:
    watch = PayloadWatch()
    for step in range(3):
        watch.computed(step, "gen", torch.zeros(2, 3, device="meta"))
        watch.gathered(step, torch.ones(2, 3, device="meta"))
        watch.gathered(step, torch.ones(2, 3, device="meta", dtype=torch.float64))
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        watch.record()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.complex64, torch.int32], ids=str)
def test_networks_of_other_formats(dtype: torch.dtype) -> None:
    assert sent(_as_it_is, dtype=dtype).unlike == 0
    assert sent(lambda v: v.view(torch.uint8), dtype=dtype).unlike == 0
    assert sent(lambda v: v.flip(0), dtype=dtype).unlike == 1
    if dtype is torch.float32:
        assert sent(lambda v: v.bfloat16(), dtype=dtype).unlike == 1
