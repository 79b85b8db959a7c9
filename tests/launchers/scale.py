"""How far the launched mode's star reaches: ``python scale.py 64 256 512`` on one machine.

Each process is a fork of one that has imported torch: the real heartbeat over the real store, and a rank that does
nothing. Printed for each number of processes, as a line of JSON: seconds until all are heard, what they say, what that
costs global rank 0, and how soon a death is noticed. ``--groups`` also makes the groups that loops and results use.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import statistics
import sys
import time
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from verify.ranks.failure.calls import SAID, Calls, entry
from verify.ranks.failure.status import RankStatus
from verify.ranks.launched.heartbeat import SILENCE, Heartbeat
from verify.ranks.launched.heartbeat_message import said_of
from verify.ranks.launched.launch import Launch
from verify.ranks.launched.transfer import Transfer

_WATCHED_SECONDS = 10.0


def said() -> dict[str, Any]:
    """As a rank in the middle of a loop says it, with as many collectives as it ever tells."""
    calls = Calls(SAID, b"".join(entry("all_gather", 1, step) for step in range(SAID)))
    status = RankStatus(40, 400, "local", "all_gather 1 of step 41", calls)
    return said_of(status) | {"host": socket.gethostname(), "terminated": False, "ended": False}


def beat(rank: int, world: int, port: int, groups: bool) -> Heartbeat:
    """Starts one process's heartbeat, and has it join the group of all where asked to."""
    heartbeat = Heartbeat(Launch("srun", rank, world, rank, "127.0.0.1", port), said)
    heartbeat.start()
    if groups:
        store = dist.PrefixStore("all", heartbeat.store("groups"))  # type: ignore[attr-defined]
        heartbeat.transfer = Transfer(store, rank, world, timedelta(seconds=300))  # type: ignore[attr-defined]
    return heartbeat


def measured(world: int, groups: bool) -> dict[str, Any]:
    """What ``world`` processes cost."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    began = time.monotonic()
    pids = []
    for rank in range(1, world):
        pid = os.fork()
        if pid == 0:
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # The store tells of each try.
                follower = beat(rank, world, port, groups)
                while "end" not in follower.order and not follower.lost():
                    time.sleep(0.5)
            finally:
                os._exit(0)
        pids.append(pid)
    forked = time.monotonic() - began
    first = beat(0, world, port, groups)
    grouped = time.monotonic() - began
    while not all(heard.said for heard in first.heard.values()):
        if time.monotonic() - began > 240:
            raise SystemExit(f"{world} processes: not all were heard within 240 s")
        time.sleep(0.05)
    started = time.monotonic() - began
    before, since = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    ages = []
    while time.monotonic() - since < _WATCHED_SECONDS:
        time.sleep(0.1)
        ages.append(max(heard.age for heard in first.heard.values()))
    after, seconds = resource.getrusage(resource.RUSAGE_SELF), time.monotonic() - since
    os.kill(pids[-1], signal.SIGKILL)
    killed = time.monotonic()
    while not first.silent(SILENCE):
        time.sleep(0.05)
    noticed, silent = time.monotonic() - killed, first.silent(SILENCE)
    first.give({"end": 0})
    time.sleep(2.0)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    size = len(json.dumps({**said(), "number": 1}))
    return {
        "processes": world,
        "forked_s": round(forked, 2),
        **({"group_of_all_s": round(grouped, 2)} if groups else {}),
        "all_heard_s": round(started, 2),
        "said_bytes": size,
        "to_rank_0_bytes_per_s": 2 * size * (world - 1),
        "oldest_word_s": {"median": round(statistics.median(ages), 2), "worst": round(max(ages), 2)},
        "rank_0_cores": round((after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / seconds, 3),
        "death_noticed_s": round(noticed, 2),
        "wrongly_silent": [rank for rank in silent if rank != world - 1],
        "load": os.getloadavg()[0],
    }


if __name__ == "__main__":
    for word in sys.argv[1:]:
        if word.isdigit():
            print(json.dumps(measured(int(word), "--groups" in sys.argv)), flush=True)
