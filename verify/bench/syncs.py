"""How often the host waits for the device inside a loop, counted by CUDA's own profiler."""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from verify.bench.tasks import unseen
from verify.protocols import Denoiser, Group, Observe
from verify.ranks.rank import Rank
from verify.tasks.stage import Plan, Stage
from verify.trace.caches import CacheWatch
from verify.trace.device import synchronise
from verify.trace.recorder import Recorder
from verify.trace.state import StateWatch

# Calls of the runtime and the driver that return only when the device has done what it was given. An asynchronous copy
# to pageable memory waits too; PyTorch follows every such copy with one of these.
_WAITING = re.compile(r"cu(da)?((Stream|Device|Event|Ctx)Synchronize|Memcpy([23]D|DtoH|HtoD)?)(_v\d+)?")


def waiting_calls(names: Iterable[str]) -> dict[str, int]:
    """Counts the calls that make the host wait, among the names of a profile's events."""
    return dict(sorted(Counter(name for name in names if _WAITING.fullmatch(name)).items()))


def syncs_in_loop(rank: Rank, plan: Plan, recorded: bool) -> dict[str, int] | None:
    """Runs a loop under the profiler, bare or recorded, and counts the waiting calls made by this rank inside it.

    The profiler's own are subtracted: those of a profile of nothing. The reference runs on rank 0 alone.
    """
    stage = Stage.of(rank, plan, again=False)
    if not stage.takes_part:
        return None
    prepared = stage.prepared

    def run(inside: Callable[[Callable[[], object]], Any]) -> Any:
        denoiser: Denoiser = prepared.denoiser
        group: Group = stage.group
        observe: Observe = unseen
        if recorded:
            state, caches = StateWatch(denoiser), CacheWatch(prepared.caches)
            recorder = Recorder(denoiser, group, prepared.x_0, stage.request, caches, rank.status, state=state)
            denoiser, group, observe = recorder.denoiser, recorder.group, recorder.observe
        synchronise(rank.device)
        # The profile holds the loop alone: what precedes and follows it may wait.
        return inside(lambda: stage.play(denoiser, group, observe))

    with stage.arithmetic():
        run(lambda work: work())  # Loads kernels, which waits.
        nothing = Counter(_profiled(lambda: None))
        counted = Counter(run(_profiled))
    synchronise(rank.device)
    return dict(sorted((counted - nothing).items()))


def _profiled(work: Callable[[], object]) -> dict[str, int]:
    """The waiting calls made while ``work`` runs."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        work()
    return waiting_calls(_names(profiler))


def _names(profiler: Any) -> list[str]:
    """Names of all events, from the trace that it exports: reading that is quicker than building a tree of events."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return [event.get("name", "") for event in json.loads(path.read_text())["traceEvents"]]
