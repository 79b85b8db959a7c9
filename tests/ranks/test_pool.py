"""A pool: what is sent comes back, processes are reused, and every other ending is reported for what it is."""

from __future__ import annotations

import os
import signal
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import tasks
import torch
from pools import alive, shared_pool, wait_until
from torch import Tensor

from verify.bits import same_bits
from verify.errors import BadInput, Unjudged
from verify.ranks.board import Place
from verify.ranks.failure import RankFailure, RankReport
from verify.ranks.family import family
from verify.ranks.plan import place
from verify.ranks.pool import PoolSpec, RankPool

# What a task that hangs is given, and what the controller may take beyond it.
TIMEOUT = 1.5
BEYOND = 8.0


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_results_come_in_rank_order_from_processes_that_stay(world_size: int) -> None:
    pool = shared_pool(world_size)
    first = pool.run(tasks.process)
    assert [(rank, world) for rank, world, _ in first] == [(rank, world_size) for rank in range(world_size)]
    assert [pid for _, _, pid in first] == pool.pids
    assert len({os.getpid(), *pool.pids}) == world_size + 1
    assert pool.run(tasks.process) == first
    assert pool.run(tasks.remember, 5) == [5 + rank for rank in range(world_size)]
    assert pool.run(tasks.remember) == [5 + rank for rank in range(world_size)]


def test_each_rank_gets_what_is_meant_for_it() -> None:
    results = shared_pool(3).run(tasks.identity, "all", each=[("a",), ("b",), ("c",)])
    assert results == [(0, "all", "a"), (1, "all", "b"), (2, "all", "c")]


DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32,
    torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex32, torch.complex64,
    torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip


def of_random_bytes(dtype: torch.dtype, *shape: int, seed: int = 0) -> Tensor:
    """Any bytes: NaNs of all payloads, infinities, both zeros, subnormals."""
    elements = torch.Size(shape).numel()
    generator = torch.Generator().manual_seed(seed)
    size = elements * torch.empty(0, dtype=dtype).element_size()
    values = torch.randint(0, 2 if dtype is torch.bool else 256, (size,), dtype=torch.uint8, generator=generator)
    return values.view(dtype).view(shape) if elements else torch.empty(shape, dtype=dtype)


def arrived_whole(sent: Tensor, back: Tensor) -> bool:
    if (sent.dtype, sent.shape) != (back.dtype, back.shape):
        return False
    as_bytes = [t.contiguous().view(-1).view(torch.uint8) for t in (sent, back)]
    return torch.equal(*as_bytes)


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")  # Said by torch of any such tensor.
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_keep_every_bit(dtype: torch.dtype) -> None:
    large = (1 << 20) // torch.empty(0, dtype=dtype).element_size() + 3
    shapes = [(), (0,), (3, 0, 2), (1,), (5, 7), (2, 3, 4, 5), (large,), (1, large, 1)]
    sent = [of_random_bytes(dtype, *shape, seed=seed) for seed, shape in enumerate(shapes)]
    for back in shared_pool(2).run(tasks.identity, sent):
        assert [arrived_whole(a, b) for a, b in zip(sent, back, strict=True)] == [True] * len(shapes)


def test_views_travel_as_what_they_show() -> None:
    small, large = of_random_bytes(torch.int32, 6, 8), of_random_bytes(torch.int32, 1024, 600)
    complex_ = torch.tensor([1 + 2j, 3 - 0j])
    sent = [small.mT, small[::2, 1::3], small[3], large.mT, large[:, ::2], small[:1].expand(4, 8), complex_.conj()]
    for back in shared_pool(2).run(tasks.identity, sent):
        assert [same_bits(a.resolve_conj(), b) for a, b in zip(sent, back, strict=True)] == [True] * len(sent)
    parameter = torch.nn.Parameter(torch.ones(3))
    for back in shared_pool(2).run(tasks.identity, {"a": [parameter], "b": (1, None, "x", float("inf"))}):
        assert type(back["a"][0]) is Tensor
        assert back["b"] == (1, None, "x", float("inf"))


def test_large_tensors_of_one_message_do_not_overlap_and_can_be_written() -> None:
    sent = [of_random_bytes(torch.uint8, (1 << 20) + i, seed=i) for i in range(4)]
    results = shared_pool(2).run(tasks.identity, sent)
    results[0][0].zero_()
    results[0][2].fill_(255)
    assert arrived_whole(sent[1], results[0][1])
    assert arrived_whole(sent[3], results[0][3])
    assert all(arrived_whole(a, b) for a, b in zip(sent, results[1], strict=True))


def test_a_large_result_survives_the_rank_that_made_it() -> None:
    with RankPool(PoolSpec(("cpu",))) as pool:
        (back,) = pool.run(tasks.identity, of_random_bytes(torch.uint8, 3 << 20))
    assert not any(map(alive, pool.pids))
    assert arrived_whole(of_random_bytes(torch.uint8, 3 << 20), back)


def test_a_distributed_test_costs_little_beyond_its_computation(capsys: pytest.CaptureFixture[str]) -> None:
    pool = shared_pool(2)
    pool.run(tasks.seconds_of_products, 1)
    beyond = []
    for _ in range(30):
        began = time.perf_counter()
        computing = max(pool.run(tasks.seconds_of_products, 20))
        beyond.append(time.perf_counter() - began - computing)
    median = statistics.median(beyond)
    with capsys.disabled():
        print(f"\na task costs {1e3 * median:.2f} ms beyond its computation (worst of 30: {1e3 * max(beyond):.2f} ms)")
    # The median is asserted: the worst of many is the scheduler's doing where other processes compute.
    assert median < 0.1


def test_replacing_ranks_is_cheap(capsys: pytest.CaptureFixture[str]) -> None:
    taken = []
    with RankPool(PoolSpec(("cpu", "cpu"))) as pool:
        for _ in range(5):
            began = time.perf_counter()
            pool.start()
            taken.append(time.perf_counter() - began)
            pool.stop()
    with capsys.disabled():
        print(f"\ntwo ranks start in {1e3 * statistics.median(taken):.0f} ms")
    assert statistics.median(taken) < 0.5  # Starting processes that import torch takes seconds.


def test_generators_are_seeded_differently_on_each_rank_and_alike_in_each_task() -> None:
    pool = shared_pool(3)
    first = pool.run(tasks.draws)
    assert all(len(set(values)) == 3 for values in zip(*first, strict=True))
    assert pool.run(tasks.draws) == first


def test_ranks_are_where_the_controller_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert {found["folder"] for found in shared_pool(2).run(tasks.surroundings)} == {str(tmp_path)}
    monkeypatch.setenv("SET_BEFORE_THE_POOL_STARTED", "yes")
    with RankPool(PoolSpec(("cpu", "cpu"), variables=(("OF_THE_POOL", "too"),))) as pool:
        for found in pool.run(tasks.surroundings):
            variables = found["variables"]
            assert (variables["SET_BEFORE_THE_POOL_STARTED"], variables["OF_THE_POOL"]) == ("yes", "too")


def test_a_rank_has_its_own_files_only() -> None:
    found = shared_pool(3).run(tasks.surroundings)
    for rank, own in enumerate(found):
        outputs = {name for name in own["descriptors"] if "verify-output" in name or "verify-stacks" in name}
        assert outputs == {f"/memfd:verify-{kind}-{rank} (deleted)" for kind in ("output", "stacks")}
        assert not [name for name in own["descriptors"] if "order" in name]
        assert not own["interruptible"]  # Ctrl-C is the controller's business.


# How a task ends, and what is said of it.


@pytest.mark.parametrize("kind", [BadInput, Unjudged])
def test_a_refusal_crosses(kind: type[Exception]) -> None:
    text = {BadInput: "the value is 3, expected 4; use 4", Unjudged: "too little memory"}[kind]
    with pytest.raises(kind) as caught:
        shared_pool(2).run(tasks.refuse, "bad input" if kind is BadInput else "unjudged")
    assert type(caught.value) is kind
    assert str(caught.value) == text
    works_again(shared_pool(2))


@dataclass(frozen=True)
class Ending:
    """What is said of rank 1 when it ends in some way at step 3, and of its peer, which waits for it or finishes."""

    state: str
    what: str
    activity: str = ""
    in_trace: str = ""
    peer: tuple[str, ...] = ("raised", "waiting")  # gloo notices that a peer has died, and not that it has raised.
    hangs: bool = False

    @property
    def wait(self) -> bool:
        return self.peer != ("finished",) or self.hangs


GATHER = "all_gather 1 of step 3"
READ = "ValueError: unpacking went wrong (its result could not be read)"
ENDINGS = {
    "SIGKILL": Ending("died", "was killed by SIGKILL: out of memory, or somebody killed it"),
    "SIGSEGV": Ending("died", "was killed by SIGSEGV", "velocity of text", "Fatal Python error: Segmentation fault"),
    "abort": Ending("died", "was killed by SIGABRT", in_trace="Fatal Python error: Aborted"),
    "os._exit": Ending("died", "exited with status 7"),
    "os._exit(0)": Ending("died", "exited with status 0"),
    "thread": Ending("died", "was killed by SIGKILL: out of memory, or somebody killed it"),
    "closes": Ending("died", "closed its connection without exiting", in_trace="_close_connection"),
    "exception": Ending("raised", "raised ValueError: the scheduler ran out of steps", in_trace="and of lines"),
    "SystemExit": Ending("raised", "raised SystemExit: 0", in_trace="sys.exit(0)", peer=("finished",)),
    "KeyboardInterrupt": Ending("raised", "raised KeyboardInterrupt", in_trace="_interrupt", peer=("finished",)),
    "unpicklable": Ending(
        "raised",
        "raised TypeError: cannot pickle '_thread.lock' object (the result could not be sent)",
        peer=("finished",),
    ),
    "raises when pickled": Ending(
        "raised", "raised ValueError: packing went wrong (the result could not be sent)", peer=("finished",)
    ),
    "meta": Ending(
        "raised",
        "raised TypeError: a torch.strided tensor on meta does not travel; send a dense one with values "
        "(the result could not be sent)",
        peer=("finished",),
    ),
    "raises when read": Ending("raised", f"raised {READ}", in_trace="tasks.py", peer=("finished",)),
    "prints": Ending("raised", "raised RuntimeError: after much output", peer=("finished",)),
    "sleep": Ending("hung", "did not finish in time", "velocity of text", "_sleep_in_python", ("hung",), True),
    "native": Ending("hung", "did not finish in time", "velocity of text", "_stuck_in_a_native_call", ("hung",), True),
    "SIGSTOP": Ending("hung", "did not finish in time and is stopped (SIGSTOP)", peer=("hung",), hangs=True),
    "twice": Ending("hung", "did not finish in time", GATHER, "all_gather", ("finished",), True),
}


def works_again(pool: RankPool) -> None:
    assert pool.run(tasks.identity, 7) == [7] * pool.spec.world_size


@pytest.mark.parametrize("way", ENDINGS)
def test_an_ending_of_one_rank(way: str) -> None:
    ending, pool = ENDINGS[way], shared_pool(2)
    before, began = pool.pids, time.monotonic()
    with pytest.raises(RankFailure) as caught:
        pool.run(tasks.fail, way, 3, (1,), ending.wait, name="failing", timeout=TIMEOUT if ending.hangs else 60.0)
    assert time.monotonic() - began < BEYOND + TIMEOUT * ending.hangs
    assert pool.pids == []
    assert not any(map(alive, before))
    victim, peer = caught.value.reports
    assert (victim.rank, victim.state, victim.what, victim.step) == (1, ending.state, ending.what, 2)
    assert victim.activity == ending.activity
    assert ending.in_trace in victim.trace
    assert (ending.state in ("raised", "hung")) <= bool(victim.trace or way == "SIGSTOP")
    assert peer.state in ending.peer
    if peer.state in ("waiting", "hung"):
        assert "all_gather" in peer.trace
        assert (peer.step, peer.activity) == (2, GATHER)
    doing = f" in {ending.activity}" if ending.activity else ""
    assert str(caught.value) == f"failing: rank 1 {ending.what} after step 2{doing}"
    works_again(pool)


def reports_of(way: str, victims: tuple[int, ...], world_size: int, timeout: float) -> list[RankReport]:
    pool = shared_pool(world_size)
    with pytest.raises(RankFailure) as caught:
        pool.run(tasks.fail, way, 3, victims, timeout=timeout)
    works_again(pool)
    return caught.value.reports


def test_a_rank_that_leaves_a_collective_out_has_finished_and_the_other_is_in_it() -> None:
    first, second = reports_of("left out", (1,), 2, TIMEOUT)
    assert (first.rank, first.state, first.activity) == (0, "hung", GATHER)
    assert (second.rank, second.state) == (1, "finished")


@pytest.mark.parametrize("way", ["exception", "SIGKILL", "os._exit", "SIGSEGV"])
def test_all_ranks_fail(way: str) -> None:
    reports = reports_of(way, (0, 1, 2), 3, 60.0)
    # One that meets a dead peer's closed connection first has that to say.
    assert {(r.rank, r.state) for r in reports} <= {(r, s) for r in range(3) for s in (ENDINGS[way].state, "raised")}
    assert (reports[0].state, reports[0].what) == (ENDINGS[way].state, ENDINGS[way].what)


def test_all_ranks_are_stopped() -> None:
    reports = reports_of("SIGSTOP", (0, 1), 2, TIMEOUT)
    assert [(r.rank, r.what) for r in reports] == [(r, ENDINGS["SIGSTOP"].what) for r in range(2)]


def test_of_three_ranks_the_dead_one_comes_first() -> None:
    reports = reports_of("SIGKILL", (2,), 3, 60.0)
    assert (reports[0].rank, reports[0].state) == (2, "died")
    assert sorted(r.rank for r in reports) == [0, 1, 2]


def test_the_end_of_what_it_printed_is_shown_and_no_more_than_fits() -> None:
    victim, _ = reports_of("prints", (1,), 2, 60.0)
    assert 1000 < len(victim.output) <= 4000
    assert "000199" in victim.output
    pool = shared_pool(2)
    pool.run(tasks.identity, 1)
    assert pool.output(0) == ""


def test_a_rank_stopped_between_tasks_is_named() -> None:
    pool = shared_pool(2)
    os.kill(pool.pids[1], signal.SIGSTOP)
    with pytest.raises(RankFailure) as caught:
        pool.run(tasks.identity, 1, name="next", timeout=TIMEOUT)
    assert str(caught.value) == "next: rank 1 did not finish in time and is stopped (SIGSTOP) before step 0"
    works_again(pool)


def test_a_stopped_rank_does_not_take_a_large_task() -> None:
    pool = shared_pool(2)
    os.kill(pool.pids[1], signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(RankFailure) as caught:
        pool.run(tasks.identity, b"x" * (8 << 20), timeout=60.0)  # Far more than a socket holds.
    assert time.monotonic() - began < BEYOND
    first = caught.value.reports[0]
    assert (first.rank, first.state) == (1, "hung")
    assert first.what == "stood still in the middle of a message and is stopped (SIGSTOP)"
    works_again(pool)


def test_a_rank_that_died_between_tasks_is_replaced_without_a_word() -> None:
    pool = shared_pool(2)
    before = pool.pids
    os.kill(before[0], signal.SIGKILL)
    assert family().exit_status(before[0], wait=10.0) == -signal.SIGKILL  # With all of its threads.
    works_again(pool)
    assert not set(before) & set(pool.pids)


def test_a_task_that_cannot_be_read_is_an_exception_of_the_rank() -> None:
    pool = shared_pool(2)
    with pytest.raises(RankFailure) as caught:
        pool.run(tasks.identity, tasks.RaisesWhenRead(), timeout=60.0)
    assert [r.what for r in caught.value.reports] == [
        "raised ValueError: unpacking went wrong (the task could not be read)"
    ] * 2
    works_again(pool)


def test_a_task_that_cannot_be_sent_is_the_callers_error() -> None:
    pool = shared_pool(2)
    with pytest.raises(ValueError, match="packing went wrong"):
        pool.run(tasks.identity, each=[(1,), (tasks.RaisesWhenPickled(),)])
    works_again(pool)


def test_an_interrupt_while_watching_ends_the_ranks() -> None:
    pool = shared_pool(2)
    before = pool.pids

    def watch(places: list[Place]) -> None:
        if any(place.step >= 2 for place in places):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pool.run(tasks.fail, "sleep", timeout=60.0, watch=watch)
    assert pool.pids == []
    assert not any(map(alive, before))
    works_again(pool)


def test_what_a_rank_started_ends_with_it() -> None:
    with RankPool(PoolSpec(("cpu",))) as pool:
        (child,) = pool.run(tasks.leave_a_process)
        assert alive(child)
    assert wait_until(lambda: not alive(child), 5.0)


def test_ranks_that_cannot_start_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "no-such-interface")
    pool = RankPool(PoolSpec(("cpu", "cpu")))
    with pytest.raises(RankFailure, match=r"^starting: rank 0 raised .*no-such-interface") as caught:
        pool.start(timeout=20.0)
    assert {r.state for r in caught.value.reports} == {"raised"}
    assert pool.pids == []
    monkeypatch.undo()
    with pool:
        works_again(pool)


def test_the_whole_failure_as_it_is_shown() -> None:
    pool = shared_pool(2)
    with pytest.raises(RankFailure) as caught:
        pool.run(tasks.fail, "exception", name="my_loop", timeout=60.0)
    victim = caught.value.reports[0].to_dict()
    assert set(victim) == {"rank", "state", "what", "step", "activity", "trace", "output"}
    assert victim["trace"].splitlines()[0] == "Traceback (most recent call last):"
    assert "worker.py" not in victim["trace"]  # How the package came to call the loop is no news to its author.


def test_the_pool_of_verify_run_is_the_one_tested() -> None:
    assert shared_pool(2).spec == place(2, "cpu").spec
