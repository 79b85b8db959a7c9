"""Making traces: every loop of a job on every rank, and what else the ranks are asked for before judging."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from verify.bits import same_bits
from verify.checks.each_step import each_step
from verify.errors import BadInput
from verify.ranks.failure.status import RankStatus
from verify.ranks.task_runner import TaskRunner, Watcher
from verify.runner.job import Job
from verify.runner.replay import References, reference_key
from verify.targets.protocol import REFERENCE
from verify.tasks.probe_inputs import probe_inputs
from verify.tasks.recompute_step import Anew, StepCheck, confirm, recompute, share_out
from verify.tasks.stage import Plan
from verify.tasks.trace_loop import trace_loop
from verify.trace.sensitivity import Sensitivity
from verify.trace.trace import Trace
from verify.trace.window import Window
from verify.verdict import Finding

# Steps that differ from the reference's are few in a loop with a fault, and all where a sampler remembers.
_MOST_TRIED = 8

Traces = dict[str, list[Trace]]


class Progress(Protocol):
    """Whoever wants to follow a run: :class:`verify.report.progress.ProgressReport`. By default nobody does."""

    def start(self, name: str, total: int) -> None:
        """A loop starts; it has ``total`` steps."""
        return None

    def update(self, name: str, done: int) -> None:
        """The slowest rank has finished ``done`` steps."""
        return None

    def finish(self, name: str) -> None:
        """The loop has ended."""
        return None


class Unheard(Progress):
    """Progress that nobody follows."""


def trace_all(
    job: Job, ranks: TaskRunner, deadline: float, progress: Progress | None, window: Window | None, kept: References
) -> Traces:
    """The traces of the reference and of each loop to be judged, one a rank, over one window of steps."""
    key = (*reference_key(job), window)
    traces: Traces = {}
    for plan in job.judged_plans() if job.stepwise else job.plans():
        name = plan.loop_name
        if plan.loop == REFERENCE and key in kept.traces:
            traces[name] = kept.traces[key]
            continue
        results = ranks.run(
            trace_loop,
            replace(plan, window=window),
            name=name,
            timeout=max(0.1, deadline - time.monotonic()),
            watch=_reporter(progress, plan),
        )
        if progress is not None:
            progress.finish(name)
        traces[name] = [trace for trace in results if trace is not None]
        _require_contract(traces[name])
        if plan.loop == REFERENCE and window is None:  # Of windows none is kept: that is what they are for.
            kept.traces[key] = traces[name]
        if any(trace.state is not None and trace.state.changes for trace in traces[name]) and not ranks.renew():
            break  # What the next loop did would be blamed on it, whoever spoilt the state.
    return traces


def _require_contract(traces: Sequence[Trace]) -> None:
    """Refuses a loop that breaks its contract alike on every rank: it is not a loop of this kind.

    Raises:
        BadInput: with what the loop did.
    """
    breaches = [trace.breach for trace in traces]
    if breaches and all(breaches):
        raise BadInput(breaches[0])


def try_inputs(job: Job, ranks: TaskRunner, deadline: float, kept: References) -> list[Sensitivity]:
    """For each CFG group, what a change of the network's inputs changes on its first rank."""
    key = reference_key(job)
    if key not in kept.sensitivities:
        plan = job.plans()[0]
        tried = ranks.run(probe_inputs, plan, name="trying inputs", timeout=max(0.1, deadline - time.monotonic()))
        kept.sensitivities[key] = [found for found in tried if found is not None]
    return kept.sensitivities[key]


def recompute_each_step(job: Job, ranks: TaskRunner, deadline: float, traces: Traces) -> dict[str, Finding]:
    """The inductive reference's finding on each loop: every step computed anew, on another rank than it came from."""
    findings = {}
    for plan in job.judged_plans():
        if plan.loop_name not in traces:
            continue
        shares = share_out(traces[plan.loop_name])
        results = ranks.run(
            recompute,
            plan,
            each=[([share for share in shares if share.checker == rank],) for rank in range(job.ranks)],
            name=f"each step of {plan.loop_name} anew",
            timeout=max(0.1, deadline - time.monotonic()),
        )
        anew = _confirmed(
            plan, ranks, deadline, traces[plan.loop_name], shares, [a for _, done in results for a in done]
        )
        recomputed = [(each.step, each.ranks, each.x_t) for each in anew if each.x_t is not None]
        reasons = {each.step: each.reason for each in anew if each.x_t is None}
        findings[plan.loop_name] = each_step(traces[plan.loop_name], results[0][0], recomputed, reasons)
    return findings


def _confirmed(
    plan: Plan, ranks: TaskRunner, deadline: float, traces: Sequence[Trace], shares: Sequence[StepCheck],
    anew: Sequence[Anew],
) -> list[Anew]:  # fmt: skip
    """The steps computed anew. Those that differ from a rank's are tried on the reference, which must repeat itself."""
    doubtful = [
        each
        for each in anew
        if each.x_t is None or not all(same_bits(each.x_t, traces[rank].x_t[each.step]) for rank in each.ranks)
    ]
    if not doubtful:
        return [*anew]
    tried = sorted((each.step, each.ranks) for each in doubtful)[:_MOST_TRIED]
    checks = [share for share in shares if (share.step, share.ranks) in tried]
    timeout = max(0.1, deadline - time.monotonic())
    told = ranks.run(
        confirm, plan, checks, name=f"trying steps of the reference beside {plan.loop_name}", timeout=timeout
    )
    confirmed = {(each.step, each.ranks): each for each in told[0]}
    untried = "too many steps differ to try each"
    return [
        confirmed.get((each.step, each.ranks), Anew(each.step, each.ranks, None, untried)) if each in doubtful else each
        for each in anew
    ]


def _reporter(progress: Progress | None, plan: Plan) -> Watcher | None:
    """What tells ``progress`` where the slowest rank is; the reference runs on rank 0 alone."""
    if progress is None:
        return None
    progress.start(plan.loop_name, plan.request.schedule.steps)

    def watch(places: Sequence[RankStatus]) -> None:
        running = places[:1] if plan.loop == REFERENCE else places
        progress.update(plan.loop_name, min(p.step for p in running) + 1)

    return watch
