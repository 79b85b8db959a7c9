"""Bounds in seconds that hold for the code and not for whatever else the machine is doing."""

from __future__ import annotations

import os
import statistics
import time

# Beyond this a bound says nothing any more, and what it bounds would outlast the time limit of its test.
_MOST = 12.0


def slowness() -> float:
    """How many times longer things take now than on a machine with nothing else to do; from 1 to 12.

    Two signs are looked at and the worse one counts: how many processes want each core, over the last minute, and how
    long short computations take beyond the CPU time that they need.
    """
    stretched = statistics.median(_stretched() for _ in range(5))
    return min(_MOST, max(1.0, os.getloadavg()[0] / len(os.sched_getaffinity(0)), stretched))


def _stretched() -> float:
    wall, cpu = time.perf_counter(), time.process_time()
    while time.process_time() - cpu < 0.005:
        sum(range(1000))
    return (time.perf_counter() - wall) / (time.process_time() - cpu)


def patient(seconds: float) -> float:
    """What ``seconds`` on an idle machine may take on this one now."""
    return seconds * slowness()
