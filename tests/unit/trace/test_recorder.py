"""What the recorder passes on: to the loop what it was given, and into the trace what the target said."""

from __future__ import annotations

import time

import pytest
import torch
from in_threads import LinearDenoiser, Notes
from recording import REQUEST, Bench
from torch import Tensor
from traces import CHANNELS, STEPS, TOKENS

from verify.bits import same_bits
from verify.protocols import Denoiser, Group, Observe
from verify.ranks.group import Alone
from verify.schedule import ALL_GATHER
from verify.trace.caches import CacheWatch
from verify.trace.device import synchronise
from verify.trace.recorder import Recorder
from verify.trace.trace import Collective


class Remembering:
    """A group that keeps what it was asked for."""

    rank, world_size = 1, 2

    def __init__(self) -> None:
        self.asked: list[tuple[str, Tensor, int | None]] = []

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        self.asked.append(("all_gather", tensor, None))
        return [tensor, tensor + 1]

    def broadcast(self, tensor: Tensor, src: int = 0) -> Tensor:
        self.asked.append(("broadcast", tensor, src))
        return tensor


def recorder_on(group: Group, x_0: Tensor) -> Recorder:
    return Recorder(LinearDenoiser(REQUEST.branches), group, x_0, REQUEST, CacheWatch({}), Notes())


def test_a_loop_is_run_with_what_is_recorded_and_timed_from_start_to_end() -> None:
    bench = Bench()
    given: list[object] = []

    def loop(denoiser: Denoiser, group: Group, observe: Observe) -> Tensor:
        given.extend([denoiser, group])
        observe(0, bench.x_0)
        time.sleep(0.01)
        return bench.x_0

    before = time.perf_counter()
    final, seconds = bench.recorder.run(loop)
    assert 0.01 <= seconds <= time.perf_counter() - before
    assert final is bench.x_0
    assert given[0] is bench.denoiser and given[1] is bench.group
    assert bench.status.said == ["finished 0", "finishing"]


def test_the_group_is_asked_for_what_the_loop_asks_for() -> None:
    group, x_0 = Remembering(), torch.ones(TOKENS, CHANNELS)
    watched = recorder_on(group, x_0).group
    assert (watched.rank, watched.world_size) == (1, 2)
    assert watched.broadcast(x_0) is x_0 and watched.broadcast(x_0, 1) is x_0
    assert [float(tensor[0, 0]) for tensor in watched.all_gather(x_0)] == [1.0, 2.0]
    assert [(name, src) for name, _, src in group.asked] == [("broadcast", 0), ("broadcast", 1), ("all_gather", None)]
    assert all(tensor is x_0 for _, tensor, _ in group.asked)


def test_collectives_are_counted_where_there_are_peers() -> None:
    """Those of the reference are not: ranks that leave it to another are not missing from it."""
    x_0 = torch.ones(TOKENS, CHANNELS)
    for group, counted in ((Remembering(), ["broadcast 1 of step 0", "all_gather 2 of step 0"]), (Alone(), [])):
        status = Notes()
        watched = Recorder(LinearDenoiser(REQUEST.branches), group, x_0, REQUEST, CacheWatch({}), status).group
        watched.broadcast(x_0)
        watched.all_gather(x_0)
        assert status.said == ["broadcast 1 of step 0", "", "all_gather 2 of step 0", ""]
        assert status.counted == counted


def test_the_rank_and_what_the_target_said_are_in_the_trace() -> None:
    x_0 = torch.ones(TOKENS, CHANNELS)
    recorder = recorder_on(Remembering(), x_0)
    recorder.observe(0, x_0)
    trace = recorder.trace("mine", x_0, 0.5, {"torch": "here"}, REQUEST.schedule, ("a note",))
    assert (trace.loop, trace.rank, trace.world_size, trace.seconds) == ("mine", 1, 2, 0.5)
    assert (trace.environment, trace.followed, trace.notes) == ({"torch": "here"}, REQUEST.schedule, ("a note",))
    bare = recorder_on(Remembering(), x_0)
    bare.observe(0, x_0)
    unsaid = bare.trace("mine", x_0, 0.5, {})
    assert (unsaid.followed, unsaid.notes, unsaid.caches) == (None, (), ())


def test_the_replica_is_in_the_trace_and_its_name() -> None:
    x_0 = torch.ones(TOKENS, CHANNELS)
    recorder = recorder_on(Remembering(), x_0)
    recorder.observe(0, x_0)
    trace = recorder.trace("mine", x_0, 0.5, {}, replica=3)
    assert (trace.replica, trace.name) == (3, "rank 1 of mine in replica 3")


def test_what_follows_the_last_step_is_added_to_what_was_in_it() -> None:
    bench = Bench()
    for step in range(STEPS):
        bench.group.all_gather(bench.x_0)
        bench.denoiser.velocity(bench.x_0, step, "gen")
        bench.observe(step, bench.x_0)
    bench.group.broadcast(bench.x_0)
    bench.denoiser.velocity(bench.x_0, STEPS, "text")
    trace = bench.trace()
    gathered = Collective(ALL_GATHER, "float32", (TOKENS, CHANNELS))
    assert trace.collectives[-1] == (gathered, Collective("broadcast", "float32", (TOKENS, CHANNELS), 0))
    assert trace.branches[-1] == ("gen", "text")
    assert trace.collectives[:-1] == ((gathered,),) * (STEPS - 1)


def test_the_step_of_a_write_to_a_cache_is_in_the_trace() -> None:
    bench = Bench()
    for step in range(STEPS):
        if step == 2:
            bench.inner.contexts["text"].add_(1.0)
        bench.observe(step, bench.x_0)
    assert [(record.branch, record.written_at) for record in bench.trace().caches] == [("gen", None), ("text", 2)]


def test_foreign_elements_are_counted_in_whole_numbers() -> None:
    bench = Bench()
    bench.denoiser.velocity(bench.x_0, 0, "gen")
    bench.rest(0)
    assert [type(count) for count in bench.trace().foreign] == [int] * STEPS


def test_foreign_elements_are_counted_where_x_t_is() -> None:
    """Adding what one device counted to a number on another would wait for it."""
    x_0 = torch.zeros(TOKENS, CHANNELS, device="meta")
    recorder = recorder_on(Remembering(), x_0)
    recorder.observe(0, x_0)
    recorder.denoiser.velocity(x_0, 1, "gen")
    recorder.observe(1, x_0)
    with pytest.raises(NotImplementedError, match="meta"):
        recorder.trace("mine", x_0, 0.5, {})


def test_x_0_is_named_with_its_own_dtype_and_device() -> None:
    bench = Bench(x_0=torch.zeros(TOKENS, CHANNELS, dtype=torch.float64))
    bench.observe(0, bench.x_0.half())
    assert bench.trace().breach.startswith(
        "the x_t given to observe is float16 (4, 3) on cpu, expected float64 (4, 3) on cpu, as x_0; "
        "keep x_t in x_0's shape, dtype and device ("
    )


def test_the_device_is_waited_for_and_a_cpu_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    synchronise(torch.device("cpu"))
    assert waited == []
    synchronise(torch.device("cuda:1"))
    assert waited == [torch.device("cuda:1")]


def test_the_start_is_a_copy() -> None:
    bench = Bench()
    x_t = bench.x_0.clone()
    bench.denoiser.velocity(x_t, 0, "gen")
    x_t += 1  # A loop may step in place.
    bench.rest(0)
    trace = bench.trace()
    assert trace.start is not None and same_bits(trace.start, bench.x_0)


def test_a_trace_asks_for_no_gradient() -> None:
    bench = Bench()
    x_t = bench.x_0.clone().requires_grad_()
    bench.denoiser.velocity(x_t, 0, "gen")
    bench.rest(0, x_t)
    trace = bench.trace(x_t)
    assert trace.start is not None
    assert not any(tensor.requires_grad for tensor in (trace.start, trace.x_t, trace.final))


def test_what_is_evaluated_before_the_noise_is_shared_is_a_warm_up() -> None:
    """Engines run their network once before the loop, for compilation say, and drop what it gives."""
    x_0 = torch.ones(TOKENS, CHANNELS)
    recorder = recorder_on(Remembering(), x_0)
    recorder.denoiser.velocity(torch.zeros_like(x_0), 0, "text")
    recorder.group.broadcast(x_0)
    recorder.denoiser.velocity(x_0, 0, "gen")
    recorder.observe(0, x_0)
    trace = recorder.trace("mine", x_0, 0.5, {})
    assert trace.branches == (("gen",),) and trace.foreign == (0,)
    assert trace.start is not None and same_bits(trace.start, x_0)


def test_a_warm_up_of_the_same_branch_is_dropped() -> None:
    bench = Bench()
    bench.denoiser.velocity(torch.zeros_like(bench.x_0), 0, "gen")
    bench.denoiser.velocity(bench.x_0, 0, "gen")
    bench.rest(0)
    assert (bench.trace().branches[0], bench.trace().foreign[0]) == (("gen",), 0)
