"""Random victims, moments and ways: every run ends in its bound, with the right verdict and the right rank.

Two kinds of run take turns. In one, a signal hits a rank at a moment that nobody chose while ranks compute and gather.
In the other, ``verify run``'s own job judges a loop that fails from within at a random step.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import tasks
from patience import patient
from pools import alive, shared_pool

from verify.ranks.failure.failure import RankFailure
from verify.ranks.failure.processes import children
from verify.ranks.failure.status import RankStatus
from verify.ranks.local.forkserver import fork_server
from verify.request import DenoiseRequest
from verify.runner.job import Job
from verify.runner.run import run_job
from verify.verdict import Verdict

QUICK, MANY = 4, 300
# What a hung task is given, and what a run may take beyond that, on a machine with nothing else to do.
TIMEOUT = 1.5
# Likewise for a whole job: its reference runs out of the same time, and must be done by then.
JOB_TIMEOUT = 4.0
BEYOND = 10.0

SIGNALS = {
    signal.SIGKILL: "was killed by SIGKILL: out of memory, or somebody killed it",
    signal.SIGTERM: "was killed by SIGTERM",
    signal.SIGSEGV: "was killed by SIGSEGV",
    signal.SIGABRT: "was killed by SIGABRT",
    signal.SIGBUS: "was killed by SIGBUS",
    signal.SIGSTOP: "did not finish in time and is stopped (SIGSTOP)",
}

# A statement in the loop, and what is said of it.
WAYS = {
    "os.kill(os.getpid(), signal.SIGKILL)": SIGNALS[signal.SIGKILL],
    "ctypes.string_at(8)": "was killed by SIGSEGV",
    "os._exit(7)": "exited with status 7",
    "os._exit(0)": "exited with status 0",
    "sys.exit('enough')": "raised SystemExit: enough",
    "raise ValueError('out of steps')": "raised ValueError: out of steps",
    "raise MemoryError": "raised MemoryError",
    "os.kill(os.getpid(), signal.SIGSTOP)": SIGNALS[signal.SIGSTOP],
    "time.sleep(600)": "did not finish in time",
    "ctypes.PyDLL(None).sleep(600)": "did not finish in time",
}

LOOP = """
import ctypes, os, signal, sys, time
from verify.loops.local import local
def loop(denoiser, request, x_0, group, observe):
    def watch(step, x_t):
        observe(step, x_t)
        if (group.rank, step) == ({victim}, {step}):
            {way}
    return local(denoiser, request, x_0, group, watch)
"""


def struck_from_outside(draw: random.Random) -> str:
    """Runs a long task, sends a signal to one rank; returns what went wrong with the report, empty if nothing did."""
    world_size = draw.choice((1, 2, 3))
    pool = shared_pool(world_size)
    victim, number = draw.randrange(world_size), draw.choice(list(SIGNALS))
    moment = draw.choice((0.0, draw.uniform(0.0, 0.01), draw.uniform(0.0, 0.5)))
    pids = pool.pids
    timer = threading.Timer(moment, os.kill, (pids[victim], number))

    def strike(places: list[RankStatus]) -> None:
        # Not before the victim has its task: one that dies with nothing to do is replaced, and nothing has failed.
        if places[victim].marks and timer.ident is None:
            timer.start()

    timeout = patient(TIMEOUT) if number == signal.SIGSTOP else 60.0
    began = time.monotonic()
    try:
        pool.run(tasks.loop_until_killed, 10**7, timeout=timeout, watch=strike)
        return "the run did not fail"
    except RankFailure as failure:
        first = failure.reports[0]
    finally:
        timer.join()
    seconds = time.monotonic() - began
    context = f"{number.name} to rank {victim} of {world_size} after {moment:.4f} s: {first} after {seconds:.1f} s"
    if (first.rank, first.what) != (victim, SIGNALS[number]):
        return f"reported wrongly: {context}"
    if seconds > timeout * (number == signal.SIGSTOP) + patient(BEYOND):
        return f"late: {context}"
    return f"left running: {context}" if pool.pids or any(map(alive, pids)) else ""


def failed_from_within(draw: random.Random, folder: Path, timeout: float) -> str:
    """Judges a loop that fails at a random step; returns what went wrong with the report, empty if nothing did."""
    world_size = draw.choice((2, 3))
    request = DenoiseRequest(num_timesteps=12, cfg_img_scale=1.0 if world_size == 2 else 1.5)
    victim, step, way = draw.randrange(world_size), draw.randrange(10), draw.choice(list(WAYS))
    path = folder / f"loop_{draw.getrandbits(64):x}.py"
    path.write_text(LOOP.format(victim=victim, step=step, way=way))
    pids = shared_pool(world_size).pids
    hangs = "sleep" in way or "SIGSTOP" in way
    timeout = patient(timeout)
    began = time.monotonic()
    report = run_job(Job(request=request, loops=(), loop_reference=f"{path}:loop", timeout=timeout if hangs else 60.0))
    seconds = time.monotonic() - began
    context = f"{way} on rank {victim} of {world_size} at step {step}: {report.failure} after {seconds:.1f} s"
    if report.verdict is not Verdict.UNKNOWN or report.exit_status != 3 or report.failure is None:
        return f"judged {report.verdict}: {context}"
    first = report.failure["ranks"][0]
    if (first["rank"], first["what"], first["step"]) != (victim, WAYS[way], step):
        return f"reported wrongly: {context}"
    if seconds > timeout * hangs + patient(BEYOND):
        return f"late: {context}"
    return f"left running: {context}" if any(map(alive, pids)) else ""


def chaos(runs: int, seed: int, folder: Path, timeout: float) -> Counter[str]:
    """What became of each run: counted as right, or with what went wrong."""
    draw = random.Random(seed)
    outcomes: Counter[str] = Counter()
    for run in range(runs):
        wrong = failed_from_within(draw, folder, timeout) if run % 2 else struck_from_outside(draw)
        outcomes[wrong or "right"] += 1
    return outcomes


def all_right(runs: int, seed: int, folder: Path, timeout: float) -> None:
    for world_size in (1, 2, 3):
        shared_pool(world_size).stop()
    before = len(os.listdir("/proc/self/fd"))
    server = fork_server().process.pid
    outcomes = chaos(runs, seed, folder, timeout)
    wrong = "\n".join(f"{count} x {outcome}" for outcome, count in outcomes.items() if outcome != "right")
    assert outcomes["right"] == runs, f"seed {seed}: {outcomes['right']} of {runs} right\n{wrong}"
    assert fork_server().process.pid == server
    for world_size in (1, 2, 3):
        pool = shared_pool(world_size)
        assert pool.run(tasks.identity, 1) == [1] * world_size
        pool.stop()
    assert len(os.listdir("/proc/self/fd")) == before
    assert not children(server)


def test_a_few_runs(tmp_path: Path) -> None:
    all_right(QUICK, 20260101, tmp_path, JOB_TIMEOUT)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_many_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seed = random.SystemRandom().getrandbits(32)
    with capsys.disabled():
        print(f"\n{MANY} runs with seed {seed}")
    all_right(MANY, seed, tmp_path, JOB_TIMEOUT)
