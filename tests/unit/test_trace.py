"""The recorder: what it writes down, what it refuses, and that it never waits for the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from in_threads import LinearDenoiser, Notes
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from traces import CHANNELS, ELEMENTS, STEPS, TOKENS, flip, small_request

from verify.bits import same_bits
from verify.errors import BadInput
from verify.loops import reference
from verify.ranks.group import Alone
from verify.request import DenoiseRequest
from verify.schedule import ALL_GATHER, BROADCAST
from verify.trace import CacheWatch, Collective, Recorder, Trace, digest

REQUEST = small_request()


class Bench:
    """A recorder with a loop's three things at hand."""

    def __init__(self, request: DenoiseRequest = REQUEST, x_0: Tensor | None = None) -> None:
        self.x_0 = torch.arange(float(ELEMENTS)).view(TOKENS, CHANNELS) if x_0 is None else x_0
        self.inner = LinearDenoiser(request.branches)
        self.pen = Notes()
        caches = {branch: {"context": tensor} for branch, tensor in self.inner.contexts.items()}
        self.recorder = Recorder(self.inner, Alone(), self.x_0, request, CacheWatch(caches), self.pen)
        self.denoiser, self.group, self.observe = self.recorder.denoiser, self.recorder.group, self.recorder.observe

    def rest(self, start: int, x_t: Tensor | None = None) -> None:
        """Observes the steps that are left."""
        for step in range(start, STEPS):
            self.observe(step, self.x_0 if x_t is None else x_t)

    def trace(self, final: Any = None) -> Trace:
        return self.recorder.trace("mine", self.x_0 if final is None else final, 0.5, {"torch": "here"})


def refusal(call: Callable[..., object], *arguments: object) -> str:
    with pytest.raises(BadInput) as caught:
        call(*arguments)
    return str(caught.value)


def test_a_whole_loop() -> None:
    bench = Bench()
    final, seconds = bench.recorder.run(lambda d, g, observe: reference(d, REQUEST, bench.x_0, g, observe))
    trace = bench.recorder.trace("reference", final, seconds, {"torch": "here"})
    assert (trace.loop, trace.rank, trace.world_size, trace.steps) == ("reference", 0, 1, STEPS)
    assert trace.start is not None and same_bits(trace.start, bench.x_0)
    assert trace.x_t.shape == (STEPS, TOKENS, CHANNELS)
    assert same_bits(trace.x_t[-1], trace.final)
    assert trace.branches == (("gen", "text"),) * 6 + (("gen",),)
    assert trace.foreign == (0,) * STEPS
    assert trace.collectives == ((),) * STEPS
    assert [(c.branch, c.tensor, c.elements) for c in trace.caches] == [("gen", "context", 6), ("text", "context", 6)]
    assert all(c.before == c.after and c.written_at is None and c.difference is None for c in trace.caches)
    assert trace.environment == {"torch": "here"}
    assert seconds > 0 and trace.seconds == seconds
    assert trace.name == "rank 0 of reference"
    seen: list[Tensor] = []

    def observe(step: int, x_t: Tensor) -> None:
        seen.append(x_t)

    alone = reference(LinearDenoiser(REQUEST.branches), REQUEST, bench.x_0, Alone(), observe)
    assert all(same_bits(a, b) for a, b in zip(trace.x_t, seen, strict=True)) and same_bits(trace.final, alone)


def test_x_t_is_copied() -> None:
    bench = Bench()
    x_t = bench.x_0.clone()
    for step in range(STEPS):
        x_t += 1  # A loop may step in place.
        bench.observe(step, x_t)
    trace = bench.trace(x_t)
    assert [float(seen[0, 0]) for seen in trace.x_t] == [float(step + 1) for step in range(STEPS)]


def test_a_view_is_kept_by_value() -> None:
    bench = Bench()
    turned = bench.x_0.t().contiguous().t()
    assert not turned.is_contiguous()
    bench.rest(0, turned)
    assert same_bits(bench.trace(turned).x_t[3], bench.x_0)


@pytest.mark.parametrize(("step", "expected"), [(1, 0), (-1, 0), (STEPS, 0)])
def test_the_first_step_is_0(step: int, expected: int) -> None:
    bench = Bench()
    assert refusal(bench.observe, step, bench.x_0) == (
        f"the step given to observe is {step}, expected {expected}; call it once after each step, in order"
    )


def test_steps_come_once_and_in_order() -> None:
    bench = Bench()
    bench.observe(0, bench.x_0)
    for step in (0, 2, -1):
        assert f"is {step}, expected 1; call it once after each step" in refusal(bench.observe, step, bench.x_0)
    bench.observe(1, bench.x_0)
    bench.rest(2)
    assert bench.trace().steps == STEPS


@pytest.mark.parametrize("step", [True, False, 0.0, "0", None, torch.tensor(0)])
def test_a_step_is_an_int(step: object) -> None:
    bench = Bench()
    assert refusal(bench.observe, step, bench.x_0) == (
        f"the step given to observe is {step!r}, expected an int; pass the loop's step counter"
    )


def test_more_steps_than_due_are_kept_for_the_check_up_to_a_bound() -> None:
    bench = Bench()
    for step in range(2 * STEPS):
        bench.observe(step, bench.x_0)
    assert refusal(bench.observe, 2 * STEPS, bench.x_0) == (
        f"the step given to observe is {2 * STEPS}, expected fewer steps than twice {STEPS}; "
        "call it once after each step, in order"
    )
    assert bench.trace().steps == 2 * STEPS


@pytest.mark.parametrize(
    ("x_t", "shown"),
    [
        (torch.zeros(TOKENS, CHANNELS, dtype=torch.bfloat16), "bfloat16 (4, 3) on cpu"),
        (torch.zeros(CHANNELS, TOKENS), "float32 (3, 4) on cpu"),
        (torch.zeros(1, TOKENS, CHANNELS), "float32 (1, 4, 3) on cpu"),
        (torch.zeros(TOKENS, CHANNELS, device="meta"), "float32 (4, 3) on meta"),
    ],
)
def test_an_x_t_like_x_0(x_t: Tensor, shown: str) -> None:
    bench = Bench()
    expected = f"is {shown}, expected float32 (4, 3) on cpu, as x_0; keep x_t in x_0's shape, dtype and device"
    assert refusal(bench.observe, 0, x_t) == f"the x_t given to observe {expected}"
    bench.rest(0)
    assert refusal(bench.trace, x_t) == f"what the loop returned {expected}"


def test_no_tensor() -> None:
    bench = Bench()
    said = refusal(bench.observe, 0, [1.0])
    assert said == "the x_t given to observe is 'list', expected a tensor; pass the latent itself"
    bench.rest(0)
    said = refusal(bench.recorder.trace, "mine", None, 0.0, {})
    assert said == "what the loop returned is 'NoneType', expected a tensor; pass the latent itself"


def test_nothing_observed() -> None:
    assert refusal(Bench().trace) == (
        f"the number of steps observed is 0, expected {STEPS}; call observe(step, x_t) after each step"
    )


def test_what_is_counted_where() -> None:
    """Before the loop counts to step 0, after it to the last step, and else to the step that is being made."""
    bench = Bench()
    bench.group.broadcast(bench.x_0)
    bench.denoiser.velocity(bench.x_0, 0, "gen")
    bench.group.all_gather(torch.zeros(2, dtype=torch.bfloat16))
    bench.observe(0, bench.x_0)
    bench.group.broadcast(bench.x_0, src=0)
    bench.group.broadcast(bench.x_0, 1)
    bench.denoiser.velocity(bench.x_0, 1, "text")
    bench.denoiser.velocity(bench.x_0, 1, "gen")
    bench.rest(1)
    bench.group.all_gather(bench.x_0)
    bench.denoiser.velocity(bench.x_0, 6, "text")
    trace = bench.trace()
    sent = Collective(BROADCAST, "float32", (4, 3), 0)
    assert trace.collectives == (
        (sent, Collective(ALL_GATHER, "bfloat16", (2,))),
        (sent, sent._replace(src=1)),
        *[()] * 4,
        (Collective(ALL_GATHER, "float32", (4, 3)),),
    )
    assert trace.branches == (("gen",), ("text", "gen"), (), (), (), (), ("text",))
    assert (trace.count(BROADCAST), trace.count(ALL_GATHER), trace.count("barrier")) == (3, 2, 0)
    assert str(sent) == "broadcast of float32 (4, 3) from rank 0"
    assert str(trace.collectives[0][1]) == "all_gather of bfloat16 (2,)"


def test_the_group_and_the_denoiser_do_what_the_inner_ones_do() -> None:
    bench = Bench()
    x_t = bench.x_0
    assert bench.group.broadcast(x_t) is x_t
    assert same_bits(bench.group.all_gather(x_t)[0], x_t)
    assert (bench.group.rank, bench.group.world_size) == (0, 1)
    assert same_bits(bench.denoiser.velocity(x_t, 3, "text"), LinearDenoiser(("gen", "text")).velocity(x_t, 3, "text"))
    assert bench.denoiser.contexts is bench.inner.contexts
    with pytest.raises(AttributeError):
        _ = bench.denoiser.nothing_of_the_kind


def test_the_pen_is_told_before_and_after() -> None:
    bench = Bench()
    bench.group.broadcast(bench.x_0)
    bench.denoiser.velocity(bench.x_0, 0, "gen")
    bench.group.all_gather(bench.x_0)
    bench.observe(0, bench.x_0)
    said = ["broadcast 1 of step 0", "velocity of gen", "all_gather 2 of step 0"]
    assert bench.pen.said == [said[0], "", said[1], "", said[2], "", "finished 0"]


def test_elements_that_are_not_those_observed() -> None:
    bench = Bench()
    shown = bench.x_0
    for step in range(STEPS):
        used = shown.clone()
        for element in range(step):
            flip(used, (element // CHANNELS, element % CHANNELS), bit=31)
        bench.denoiser.velocity(used, step, "gen")
        bench.observe(step, shown)
    assert bench.trace().foreign == tuple(range(STEPS))


def test_a_sign_of_zero_is_foreign() -> None:
    bench = Bench(x_0=torch.zeros(TOKENS, CHANNELS))
    bench.observe(0, bench.x_0)
    bench.denoiser.velocity(-bench.x_0, 1, "gen")
    bench.rest(1)
    assert bench.trace().foreign == (0, ELEMENTS, 0, 0, 0, 0, 0)


def test_every_evaluation_of_a_step_counts() -> None:
    bench = Bench()
    other = bench.x_0.clone()
    flip(other, (0, 0))
    bench.denoiser.velocity(bench.x_0, 0, "gen")
    bench.denoiser.velocity(other, 0, "text")  # In step 0 the first evaluation is what the others are held to.
    bench.observe(0, bench.x_0)
    bench.denoiser.velocity(other, 1, "gen")
    bench.denoiser.velocity(other, 1, "text")
    bench.rest(1)
    trace = bench.trace()
    assert trace.foreign[:2] == (1, 2)
    assert trace.start is not None and same_bits(trace.start, bench.x_0)


@pytest.mark.parametrize("other", [torch.zeros(TOKENS, CHANNELS, dtype=torch.float64), torch.zeros(2, CHANNELS)])
def test_another_shape_or_dtype_is_foreign_altogether(other: Tensor) -> None:
    bench = Bench()
    bench.observe(0, bench.x_0)
    bench.denoiser.velocity(other, 1, "gen")
    bench.rest(1)
    assert bench.trace().foreign[1] == ELEMENTS


def test_no_evaluation_in_step_0_leaves_no_start() -> None:
    bench = Bench()
    bench.rest(0)
    assert bench.trace().start is None


class Operators(TorchDispatchMode):
    """Notes every operator."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(func.name())
        return func(*args, **(kwargs or {}))


def test_inside_the_loop_nothing_leaves_the_device() -> None:
    """A tensor on ``meta`` has no bytes: to wait for it, read it, hash it or copy it to the CPU would raise."""
    bench = Bench(x_0=torch.zeros(TOKENS, CHANNELS, device="meta"))
    with Operators() as operators:
        for step in range(STEPS):
            bench.recorder.evaluated(bench.x_0, "gen")
            bench.recorder.collective(ALL_GATHER, bench.x_0)
            bench.recorder.between()
            bench.observe(step, bench.x_0)
    assert operators.seen <= {"aten::clone", "aten::view.dtype", "aten::ne.Tensor", "aten::sum", "aten::add_.Tensor",
                              "aten::zeros", "aten::detach"}  # fmt: skip
    assert "aten::clone" in operators.seen, "or the spy saw nothing"
    with pytest.raises((RuntimeError, NotImplementedError)):
        bench.trace(bench.x_0)


# Contexts.


def test_a_write_is_noticed_with_its_step_and_put_right() -> None:
    bench = Bench()
    text = bench.inner.contexts["text"]
    before = text.clone()
    for step in range(STEPS):
        if step == 4:
            text[1, 2] += 1.0
        bench.observe(step, bench.x_0)
    gen, written = bench.trace().caches
    assert (gen.written_at, gen.difference, gen.before) == (None, None, gen.after)
    assert written.written_at == 4
    assert written.before == digest(before) != written.after
    assert written.difference is not None
    assert (written.difference.index, written.difference.mismatched) == ((1, 2), 1)
    assert written.difference.values == (float(before[1, 2]), float(before[1, 2] + 1.0))
    assert same_bits(text, before)


def test_a_write_that_no_counter_sees_is_noticed_by_its_bytes() -> None:
    bench = Bench()
    gen = bench.inner.contexts["gen"]
    bench.observe(0, bench.x_0)
    gen.data[0, 0] = 7.0
    bench.rest(1)
    (written, _) = bench.trace().caches
    assert written.before != written.after
    assert written.written_at is None
    assert written.difference is not None and written.difference.values == (-1.0, 7.0)
    assert float(gen[0, 0]) == -1.0


def test_a_write_after_the_last_step_has_no_step() -> None:
    bench = Bench()
    bench.rest(0)
    bench.inner.contexts["gen"].add_(1.0)
    assert [(c.before != c.after, c.written_at) for c in bench.trace().caches] == [(True, None), (False, None)]


def test_a_write_that_changes_nothing_is_none() -> None:
    bench = Bench()
    bench.inner.contexts["gen"].mul_(1.0)
    bench.rest(0)
    assert [(c.before == c.after, c.written_at) for c in bench.trace().caches] == [(True, None)] * 2


def test_a_write_of_the_other_zero_is_one() -> None:
    tensor = torch.zeros(3)
    watch = CacheWatch({"gen": {"keys": tensor}})
    watch.begin()
    tensor.neg_()
    watch.look(0)
    (record,) = watch.records()
    assert (record.before != record.after, record.written_at) == (True, 0)


def test_the_watch_begins_anew_with_each_loop() -> None:
    tensor = torch.zeros(3)
    watch = CacheWatch({"gen": {"keys": tensor}})
    for step in (2, 5):
        watch.begin()
        for looked in range(7):
            if looked == step:
                tensor[0] = 1.0
            watch.look(looked)
        (record,) = watch.records()
        assert record.written_at == step
    watch.begin()
    watch.look(0)
    (record,) = watch.records()
    assert record.before == record.after and record.written_at is None


def test_layers_that_share_memory_each_have_their_own_step() -> None:
    """Views count each other's writes; a context keeps the keys of all layers in one tensor."""
    keys = torch.zeros(3, 4)
    watch = CacheWatch({"gen": {f"keys, layer {layer}": keys[layer] for layer in range(3)}})
    watch.begin()
    for step in range(STEPS):
        if step in (2, 5):
            keys[{2: 1, 5: 0}[step], 0] += 1.0
        watch.look(step)
    assert [record.written_at for record in watch.records()] == [5, 2, None]


def test_a_cache_put_in_the_place_of_another_is_noticed_and_the_first_put_back() -> None:
    """As an append to a cache does it."""
    first = torch.zeros(3)
    contexts = {"gen": {"keys": first}}
    watch = CacheWatch(contexts)
    watch.begin()
    watch.look(0)
    contexts["gen"]["keys"] = torch.ones(4)
    first[0] = 1.0
    watch.look(1)
    (record,) = watch.records()
    assert (record.written_at, record.difference, record.elements) == (1, None, 3)
    assert (record.before, record.after) == (digest(torch.zeros(3)), digest(torch.ones(4)))
    assert contexts["gen"]["keys"] is first and same_bits(first, torch.zeros(3))


def test_a_cache_put_back_with_the_bytes_it_had_is_none_the_worse() -> None:
    first = torch.zeros(3)
    contexts = {"gen": {"keys": first}}
    watch = CacheWatch(contexts)
    watch.begin()
    contexts["gen"]["keys"] = torch.zeros(3)
    first[0] = 1.0
    watch.look(0)
    (record,) = watch.records()
    assert record.before == record.after and record.written_at is None
    assert contexts["gen"]["keys"] is first and same_bits(first, torch.zeros(3))


def test_no_contexts_no_records() -> None:
    watch = CacheWatch({})
    watch.begin()
    watch.look(0)
    assert watch.records() == ()


def test_digests_are_of_bytes_in_row_major_order() -> None:
    a = torch.arange(6.0).view(2, 3)
    assert digest(a) == digest(a.t().contiguous().t()) == digest(a.view(6))
    assert digest(a) != digest(a.t())
    assert digest(torch.tensor([0.0])) != digest(torch.tensor([-0.0]))
    assert len({digest(torch.zeros(4, dtype=d)) for d in (torch.float32, torch.bfloat16, torch.float64)}) == 3
    assert digest(torch.zeros(0)) == digest(torch.zeros(0, 3))
