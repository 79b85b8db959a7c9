"""What the watch over weights, contexts, generators, hooks and functions sees, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import verify.combine
from verify.trace.digest import BLOCK, _sums_by_operators, digest, digests
from verify.trace.state import Change, StateWatch

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Context:
    keys: Tensor
    position: int


class Network:
    """A denoiser with a network, contexts and scratch memory."""

    def __init__(self) -> None:
        self.model: Any = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, affine=False))
        self.contexts = {"gen": Context(torch.ones(2, 3), 5), "text": Context(torch.zeros(2, 3), 0)}
        self.scratch = torch.zeros(3)

    def velocity(self, x_t: Tensor, step: int, branch: str) -> Tensor:
        self.scratch.add_(1.0)
        return x_t + self.contexts[branch].keys.sum()


class Wrapper:
    def __init__(self, inner: Network) -> None:
        self.inner = inner

    def velocity(self, x_t: Tensor, step: int, branch: str) -> Tensor:
        return self.inner.velocity(x_t, step, branch)


def changes(spoil: Any, at: int = 2, wrapped: bool = False) -> tuple[Change, ...]:
    """What is seen of a loop of four steps that calls ``spoil(network)`` before the evaluation of one of them."""
    network = Network()
    with torch.no_grad():
        watch = StateWatch(Wrapper(network) if wrapped else network)
        for step in range(4):
            if step == at:
                spoil(network)
            watch.entering()
            network.velocity(torch.zeros(3), step, "gen")
            watch.left()
            watch.look(step)
        if at == 4:
            spoil(network)
        return watch.record().changes


def test_nothing_spoilt_nothing_seen() -> None:
    assert changes(lambda network: None) == ()


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(
    ("spoil", "part", "name"),
    [
        (lambda n: n.model[0].weight.zero_(), "weights", "0.weight"),
        (lambda n: n.model[1].running_mean.add_(1.0), "weights", "1.running_mean"),
        (lambda n: n.contexts.update(text=n.contexts["gen"]), "contexts", "contexts['text'].keys"),
        (
            lambda n: n.contexts.update(gen=replace(n.contexts["gen"], position=6)),
            "contexts",
            "contexts['gen'].position",
        ),
        (lambda n: n.contexts["gen"].keys.mul_(2.0), "contexts", "contexts['gen'].keys"),
        (lambda n: n.contexts.clear(), "contexts", "contexts['gen'].keys"),
    ],
)
def test_what_is_spoilt_is_named_with_its_step(spoil: Any, part: str, name: str, wrapped: bool) -> None:
    def spoil_once(network: Network) -> None:
        if "clear" in str(spoil.__code__.co_names):
            network.velocity = lambda x_t, step, branch: x_t  # type: ignore[method-assign]
        spoil(network)

    seen = changes(spoil_once, wrapped=wrapped)
    assert Change(part, name, 2, True) in seen


def test_a_write_that_is_put_right_is_told() -> None:
    def scribble(network: Network) -> None:
        kept = network.model[0].bias.clone()
        network.model[0].bias.zero_()
        network.model[0].bias.copy_(kept)

    assert changes(scribble, at=1) == (Change("weights", "0.bias", 1, False),)


def test_a_write_that_no_counter_sees_shows_at_the_end() -> None:
    def through_numpy(network: Network) -> None:
        network.model[0].weight.numpy()[0, 0] += 1.0

    assert changes(through_numpy) == (Change("weights", "0.weight", None, True),)


def test_a_write_after_the_last_step_shows() -> None:
    assert changes(lambda n: n.model[0].weight.zero_(), at=4) == (Change("weights", "0.weight", None, True),)


def test_a_hook_that_is_left_is_told() -> None:
    seen = changes(lambda n: n.model[0].register_forward_hook(lambda module, given, made: made * 1.0))
    assert seen == (Change("hooks", "0", None, True),)


def test_a_function_that_is_replaced_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def patch(network: Network) -> None:
        monkeypatch.setattr(torch.nn.functional, "silu", lambda x: x)
        monkeypatch.setattr(verify.combine, "combine_cfg", lambda *_: None)

    assert {change.name for change in changes(patch)} == {"torch.nn.functional.silu", "verify.combine.combine_cfg"}


def test_generators_may_move() -> None:
    assert changes(lambda n: torch.rand(1)) == (), "what is drawn is judged by its x_t"


def test_state_of_another_process_start_is_told_apart() -> None:
    network = Network()
    first = StateWatch(network).before()
    with torch.no_grad():
        network.model[0].weight.zero_()
        watch = StateWatch(network)
        watch.left()
        assert watch.record(first).differs == ("weights",)


def sums(tensor: Tensor) -> list[int]:
    found: list[int] = _sums_by_operators(tensor.contiguous().view(-1).view(torch.uint8)).tolist()
    return found


def test_the_sums_of_blocks_see_what_an_xor_does_not() -> None:
    """What a GPU computes, here by PyTorch's operators."""
    zeros = torch.zeros(3 * BLOCK + 5)
    assert sums(zeros) != sums(torch.zeros(3 * BLOCK + 6)), "zeros at the end count"
    ones = zeros.clone()
    ones[:8] = 1.0
    assert sums(ones) != sums(zeros), "equal pairs do not cancel"
    a = torch.arange(float(2 * BLOCK))
    b = a.clone()
    b[3], b[7] = a[7], a[3]
    assert sums(a) != sums(b), "elements that change places are seen"
    assert sums(a) == sums(a.clone())
    for at in (0, BLOCK - 1, BLOCK, 2 * BLOCK - 1):
        c = a.clone()
        c.view(torch.int32)[at] ^= 1
        assert sum(x != y for x, y in zip(sums(a), sums(c), strict=True)) == 1


def test_a_digest_is_of_bytes_whatever_carries_them() -> None:
    x = torch.randn(6, 4)
    with torch.inference_mode():
        inference = x.clone()
    assert digest(inference) == digest(x) == digest(torch._neg_view(-x))
    assert digest(x.to(torch.float8_e4m3fn)) != digest(x)
    assert digest(torch.empty(0)) == digest(torch.empty(0, 3))
    assert digest(torch.tensor(3.0).expand(1)) == digest(torch.tensor([3.0])), "contiguous, with a stride of 0"
    assert digest(torch.complex(x, x)) != digest(torch.complex(x, -x))


def test_what_nobody_wrote_to_is_not_digested_again(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network()
    first = StateWatch(network)
    asked: list[int] = []

    def counted(tensors: Iterable[Tensor]) -> list[str]:
        asked.append(1)
        return digests(tensors)

    monkeypatch.setattr("verify.trace.state.digests", counted)
    assert StateWatch(network).before() == first.before()
    assert len(asked) == 1, "the contexts alone"
    with torch.no_grad():
        network.model[0].bias.add_(1.0)
    assert StateWatch(network).before() != first.before()
    other = Network()
    assert StateWatch(other).before() != first.before(), "another network's tensors are others"
