"""However a task ends, its ranks are reported for what became of them, and the pool works again."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from typing import Any

import pytest
import tasks
from patience import patient
from pools import alive, shared_pool, wait_until

from verify.errors import BadInput, Unjudged
from verify.ranks.failure.failure import RankFailure
from verify.ranks.failure.report import RankReport
from verify.ranks.failure.status import RankStatus
from verify.ranks.local import pool as pool_module
from verify.ranks.local.forkserver import ForkServer, fork_server
from verify.ranks.local.pool import PoolSpec, RankPool

# What a task that hangs is given, and what the controller may take beyond it, where nothing else runs.
TIMEOUT = 1.5
BEYOND = 8.0


@pytest.fixture(autouse=True)
def little_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers of a failed rank get what they need on this machine now, and not the seconds that a real run grants."""
    monkeypatch.setattr(pool_module, "_GRACE", patient(0.5))


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
    "MemoryError": Ending("raised", "raised MemoryError", in_trace="bytearray"),
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
    timeout = patient(TIMEOUT) if ending.hangs else 60.0
    with pytest.raises(RankFailure) as caught:
        pool.run(tasks.fail, way, 3, (1,), ending.wait, name="failing", timeout=timeout)
    assert time.monotonic() - began < patient(BEYOND) + timeout * ending.hangs
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
    told = f"rank 1 {ending.what} after step 2{doing}"
    if way == "twice":
        told = f"rank 1 waits in {GATHER}, which rank 0 never joined (rank 0 has finished)"
    assert str(caught.value) == f"failing: {told}"
    if peer.state in ("waiting", "hung"):
        assert str(caught.value.awaited) == f"rank 0 waits in {GATHER}, which rank 1 never joined"
    works_again(pool)


def test_a_rank_that_runs_out_of_memory() -> None:
    victim, peer = reports_of("memory", (1,), 2, 60.0)
    assert (victim.rank, victim.state, victim.step, victim.activity) == (1, "raised", 2, "velocity of text")
    assert victim.what.startswith("raised RuntimeError: ")
    assert "allocate" in victim.what
    assert "_run_out_of_memory" in victim.trace
    assert peer.state in ("raised", "waiting")


def test_a_rank_that_dies_while_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    fork = ForkServer.fork

    def and_kill(self: ForkServer, order: dict[str, Any], *others: Any) -> Any:
        # They wait for one rank more: none is up before it is killed, however late that is.
        one_more = {"devices": (*order["devices"], "cpu"), "group": (*order["group"], 2)}
        workers = fork(self, order | one_more, *others)
        time.sleep(0.5)
        os.kill(workers[1].pid, signal.SIGKILL)
        return workers

    monkeypatch.setattr(ForkServer, "fork", and_kill)
    with pytest.raises(RankFailure) as caught:
        RankPool(PoolSpec(("cpu", "cpu"))).start(timeout=60.0)
    assert str(caught.value).startswith("starting: rank 1 was killed by SIGKILL")
    assert caught.value.seconds < patient(BEYOND)


def reports_of(way: str, victims: tuple[int, ...], world_size: int, timeout: float) -> list[RankReport]:
    pool = shared_pool(world_size)
    with pytest.raises(RankFailure) as caught:
        pool.run(tasks.fail, way, 3, victims, timeout=timeout)
    works_again(pool)
    return caught.value.reports


def test_a_rank_that_leaves_a_collective_out_has_finished_and_the_other_is_in_it() -> None:
    first, second = reports_of("left out", (1,), 2, patient(TIMEOUT))
    assert (first.rank, first.state, first.activity) == (0, "hung", GATHER)
    assert (second.rank, second.state) == (1, "finished")


@pytest.mark.parametrize("way", ["exception", "SIGKILL", "os._exit", "SIGSEGV"])
def test_all_ranks_fail(way: str) -> None:
    reports = reports_of(way, (0, 1, 2), 3, 60.0)
    # One that meets a dead peer's closed connection first has that to say.
    assert {(r.rank, r.state) for r in reports} <= {(r, s) for r in range(3) for s in (ENDINGS[way].state, "raised")}
    assert (reports[0].state, reports[0].what) == (ENDINGS[way].state, ENDINGS[way].what)


def test_all_ranks_are_stopped() -> None:
    reports = reports_of("SIGSTOP", (0, 1), 2, patient(TIMEOUT))
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
        pool.run(tasks.identity, 1, name="next", timeout=patient(TIMEOUT))
    assert str(caught.value) == "next: rank 1 did not finish in time and is stopped (SIGSTOP) before step 0"
    works_again(pool)


def test_a_stopped_rank_does_not_take_a_large_task() -> None:
    pool = shared_pool(2)
    os.kill(pool.pids[1], signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(RankFailure) as caught:
        pool.run(tasks.identity, b"x" * (8 << 20), timeout=60.0)  # Far more than a socket holds.
    assert time.monotonic() - began < patient(BEYOND)
    first = caught.value.reports[0]
    assert (first.rank, first.state) == (1, "hung")
    assert first.what == "stood still in the middle of a message and is stopped (SIGSTOP)"
    works_again(pool)


def test_a_rank_that_died_between_tasks_is_replaced_without_a_word() -> None:
    pool = shared_pool(2)
    before = pool.pids
    os.kill(before[0], signal.SIGKILL)
    assert fork_server().exit_status(before[0], wait=10.0) == -signal.SIGKILL  # With all of its threads.
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

    def watch(places: list[RankStatus]) -> None:
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
    assert wait_until(lambda: not alive(child), patient(5.0))


def test_ranks_that_cannot_start_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "no-such-interface")
    pool = RankPool(PoolSpec(("cpu", "cpu")))
    with pytest.raises(RankFailure, match=r"^starting: rank 0 raised .*no-such-interface") as caught:
        pool.start(timeout=120.0)
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
