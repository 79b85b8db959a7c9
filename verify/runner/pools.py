"""Judging one request at a time in pools of local workers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from verify.errors import Unjudged
from verify.ranks.local.pool import PoolSpec, RankPool
from verify.ranks.plan import Placement, place
from verify.runner.job import Job
from verify.runner.one_request import blank_report, reference_on, run_on
from verify.runner.replay import References
from verify.runner.run_report import RunReport
from verify.runner.tracing import Progress, Traces
from verify.trace.trace import Trace

_pools: dict[PoolSpec, RankPool] = {}


def pool_for(spec: PoolSpec) -> RankPool:
    """The pool with these ranks, kept for the whole life of this process."""
    if spec not in _pools:
        _pools[spec] = RankPool(spec)
    return _pools[spec]


@dataclass(frozen=True)
class InPools:
    """Judges one request at a time in pools of local workers.

    Attributes:
        began: when the whole run did.
        progress: whoever wants to follow.
        kept: what the reference did.
        pools: the pool with these ranks.
    """

    began: float
    progress: Progress | None
    kept: References
    pools: Callable[[PoolSpec], RankPool] = pool_for

    def judge(self, job: Job, name: str) -> tuple[RunReport, Traces]:
        """As :class:`verify.runner.sequence.OneRequest` has it."""
        blank = blank_report(job)
        try:
            placement = _place(job)
        except Unjudged as reason:
            return replace(blank, notes=(str(reason),), timings={"total": time.monotonic() - self.began}), {}
        report = replace(blank, backend=placement.spec.backend, notes=placement.notes)
        pool = self.pools(placement.spec)
        progress = self.progress if self.progress is None or not name else Within(self.progress, name)
        report, traces = run_on(job, pool, report, self.began, progress, self.kept)
        if not all(_in_step(of_loop) for of_loop in traces.values()):
            # A collective that some rank did not call may still be under way; the next run must not inherit it.
            pool.stop()
        return report, traces

    def reference(self, job: Job, name: str) -> Trace:
        """As :class:`verify.runner.sequence.OneRequest` has it."""
        pool = self.pools(_place(job).spec)
        return reference_on(job, pool, self.began, name)

    @contextmanager
    def afresh(self) -> Iterator[InPools]:
        """As :class:`verify.runner.sequence.OneRequest` has it: workers of their own, while the context lasts."""
        fresh: dict[PoolSpec, RankPool] = {}

        def pool(spec: PoolSpec) -> RankPool:
            if spec.gpus:
                self.pools(spec).stop()  # Two networks need not fit on a GPU.
            return fresh.setdefault(spec, RankPool(spec))

        try:
            yield replace(self, kept=References(), pools=pool)
        finally:
            for each in fresh.values():
                each.stop()


def _place(job: Job) -> Placement:
    return place(
        job.ranks, job.device, job.backend, larger_world=job.larger_world, fresh_interpreters=job.fresh_interpreters
    )


@dataclass(frozen=True)
class Within:
    """Progress in a part of a run, whose name is added to that of each loop."""

    whole: Progress
    part: str

    def start(self, name: str, total: int) -> None:
        """As :meth:`Progress.start`."""
        self.whole.start(f"{name}, {self.part}", total)

    def update(self, name: str, done: int) -> None:
        """As :meth:`Progress.update`."""
        self.whole.update(f"{name}, {self.part}", done)

    def finish(self, name: str) -> None:
        """As :meth:`Progress.finish`."""
        self.whole.finish(f"{name}, {self.part}")


def _in_step(traces: Sequence[Trace]) -> bool:
    """Whether all ranks called the same collectives in the same order."""
    called = [[collective for step in trace.collectives for collective in step] for trace in traces]
    return all(calls == called[0] for calls in called)
