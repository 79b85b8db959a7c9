"""Bounds in seconds that hold for the code and not for whatever else the machine is doing."""

from __future__ import annotations

import os
import time


def slowness() -> float:
    """How many times longer things take now than on a machine with nothing else to do; at least 1.

    Two signs are looked at and the worse one counts: how many processes want each core, over the last minute, and how
    long a short computation takes beyond the CPU time that it needs.
    """
    wall, cpu = time.perf_counter(), time.process_time()
    while time.process_time() - cpu < 0.02:
        sum(range(1000))
    stretched = (time.perf_counter() - wall) / (time.process_time() - cpu)
    return max(1.0, os.getloadavg()[0] / len(os.sched_getaffinity(0)), stretched)


def patient(seconds: float) -> float:
    """What ``seconds`` on an idle machine may take on this one now."""
    return seconds * slowness()
