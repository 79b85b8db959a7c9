"""The recorder: what it writes down, what it refuses, and that it never waits for the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from in_threads import LinearDenoiser
from recording import REQUEST, Bench
from torch import Tensor
from traces import CHANNELS, ELEMENTS, STEPS, TOKENS, flip

from verify.bits import same_bits
from verify.errors import BadInput
from verify.loops import reference
from verify.ranks.group import Alone
from verify.schedule import ALL_GATHER, BROADCAST
from verify.trace.trace import Collective


def refusal(call: Callable[..., object], *arguments: object) -> str:
    with pytest.raises(BadInput) as caught:
        call(*arguments)
    return str(caught.value)


def breach(step: Any, x_t: Any) -> str:
    """How a loop that shows ``x_t`` after ``step`` first broke its contract, without the line of this file."""
    bench = Bench()
    bench.observe(step, x_t)
    return bench.trace().breach.rpartition(" (")[0]


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
    assert (trace.first, trace.taken, trace.kept) == (0, None, range(STEPS)), "no window: all is kept"
    seen: list[Tensor] = []

    def observe(step: int, x_t: Tensor, state: Any = None) -> None:
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
    assert breach(step, Bench().x_0) == (
        f"the step given to observe is {step}, expected {expected}; call it once after each step, in order"
    )


def test_steps_come_once_and_in_order() -> None:
    for step in (0, 2, -1):
        bench = Bench()
        bench.observe(0, bench.x_0)
        bench.observe(step, bench.x_0)
        bench.rest(1)
        trace = bench.trace()
        assert f"is {step}, expected 1; call it once after each step" in trace.breach
        assert f"{__file__}:" in trace.breach, "where the loop called it"
        assert trace.steps == 1, "recording ends with the breach"


@pytest.mark.parametrize("step", [True, False, 0.0, "0", None])
def test_a_step_is_an_int(step: object) -> None:
    assert breach(step, Bench().x_0) == (
        f"the step given to observe is {step!r}, expected an int; pass the loop's step counter"
    )


@pytest.mark.parametrize("made", [numpy.int64, torch.tensor])
def test_a_step_may_be_what_python_takes_for_an_index(made: Callable[[int], Any]) -> None:
    bench = Bench()
    for step in range(STEPS):
        bench.observe(made(step), bench.x_0)
    assert (bench.trace().breach, bench.trace().steps) == ("", STEPS)


def test_more_steps_than_due_are_kept_for_the_check_up_to_a_bound() -> None:
    bench = Bench()
    for step in range(2 * STEPS):
        bench.observe(step, bench.x_0)
    assert refusal(bench.observe, 2 * STEPS, bench.x_0) == (
        f"the step given to observe is {2 * STEPS}, expected fewer steps than twice {STEPS}; end the loop"
    )
    assert bench.trace().steps == 2 * STEPS


def test_a_loop_that_broke_its_contract_is_not_let_run_for_ever() -> None:
    bench = Bench()
    for _ in range(2 * STEPS):
        bench.observe(5, bench.x_0)
    with pytest.raises(BadInput, match="expected fewer steps than twice 7; end the loop"):
        bench.observe(5, bench.x_0)
    assert bench.trace().breach.startswith("the step given to observe is 5, expected 0")


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
    expected = f"is {shown}, expected float32 (4, 3) on cpu, as x_0; keep x_t in x_0's shape, dtype and device"
    assert breach(0, x_t) == f"the x_t given to observe {expected}"
    bench = Bench()
    bench.rest(0)
    assert bench.trace(x_t).breach == f"what the loop returned {expected}"


def test_no_tensor() -> None:
    assert breach(0, [1.0]) == "the x_t given to observe is 'list', expected a tensor; pass the latent itself"
    bench = Bench()
    bench.rest(0)
    said = bench.recorder.trace("mine", None, 0.0, {}).breach
    assert said == "what the loop returned is 'NoneType', expected a tensor; pass the latent itself"


def test_a_sparse_tensor() -> None:
    bench = Bench()
    expected = "is 'a torch.sparse_coo tensor', expected a dense one, as x_0; pass x_t.to_dense()"
    assert breach(0, bench.x_0.to_sparse()) == f"the x_t given to observe {expected}"
    bench.rest(0)
    assert bench.trace(bench.x_0.to_sparse()).breach == f"what the loop returned {expected}"


def test_nothing_observed() -> None:
    assert Bench().trace().breach == (
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
    assert bench.status.said == [said[0], "", said[1], "", said[2], "", "finished 0"]


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


def test_another_shape_is_foreign_altogether() -> None:
    bench = Bench()
    bench.observe(0, bench.x_0)
    bench.inner.velocity = lambda x_t, step, branch: x_t  # type: ignore[method-assign]
    bench.denoiser.velocity(torch.zeros(2, CHANNELS), 1, "gen")
    bench.rest(1)
    assert bench.trace().foreign[1] == ELEMENTS


def test_x_t_may_be_cast_for_the_network() -> None:
    """The cast itself is compared: it must be that of the x_t observed."""
    bench = Bench()
    bench.observe(0, bench.x_0)
    bench.denoiser.velocity(bench.x_0.bfloat16(), 1, "gen")
    bench.observe(1, bench.x_0)
    bench.denoiser.velocity((bench.x_0 + 1).bfloat16(), 2, "gen")
    bench.rest(2)
    assert bench.trace().foreign[1:3] == (0, ELEMENTS)


def test_no_evaluation_in_step_0_leaves_no_start() -> None:
    bench = Bench()
    bench.rest(0)
    assert bench.trace().start is None


def test_inside_the_loop_nothing_leaves_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither an operator that waits for a value, nor a method by which bytes come to the host."""
    bench = Bench()
    bench.inner.velocity = lambda x_t, step, branch: x_t  # type: ignore[method-assign]
    # On the CPU these run no operator that could be noted.
    for method in ("cpu", "to", "numpy", "tolist", "item", "__bool__", "__int__", "__float__"):
        monkeypatch.setattr(Tensor, method, lambda *_, method=method: pytest.fail(f"Tensor.{method} was called"))
    with torch.autograd.profiler.profile() as operators:
        for step in range(STEPS):
            bench.denoiser.velocity(bench.x_0, step, "gen")
            bench.group.all_gather(bench.x_0)
            bench.inner.contexts["text"].add_(1.0)  # A written cache is looked at more closely.
            bench.observe(step, bench.x_0)
    seen = {event.name for event in operators.function_events}
    assert not {"aten::item", "aten::_local_scalar_dense", "aten::equal", "aten::nonzero"} & seen
    assert {"aten::clone", "aten::ne", "aten::any"} <= seen, "or the spy saw nothing"
    with pytest.raises(pytest.fail.Exception, match=r"Tensor\.\w+ was called"):
        bench.trace()
