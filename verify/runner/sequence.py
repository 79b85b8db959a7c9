"""Several requests, judged one after the other in the same ranks, and told as one."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol

from verify.checks.agreement import Pair, of_shard
from verify.checks.merging import over_requests
from verify.checks.requests_matter import requests_matter
from verify.checks.requests_repeat import Between, requests_repeat, survived
from verify.errors import BadInput, Unjudged
from verify.ranks.failure.failure import RankFailure
from verify.runner.job import ROUNDING, Job
from verify.runner.requests import MATRIX, PARAMETERS, SEQUENCE, Asked, neighbours
from verify.runner.run_report import RunReport
from verify.runner.tracing import Traces
from verify.targets.finding import find_target
from verify.trace.trace import Trace
from verify.verdict import Finding, Verdict, merge

# A loop that was not written for a request may wait for ever in it.
_OPTIONAL_SECONDS = 30.0
# What these look at is there at guided steps only.
_OF_GUIDED_STEPS = ("parallelism_engaged", "not_vacuous", "sent_as_computed")


class OneRequest(Protocol):
    """Judges one request at a time, all in the same ranks as far as their number allows."""

    def judge(self, job: Job, name: str) -> tuple[RunReport, Traces]:
        """The report on a job of one request, and each loop's traces; ``name`` is for whoever follows."""
        ...

    def reference(self, job: Job, name: str) -> Trace:
        """What the reference does for a job's request."""
        ...

    def afresh(self) -> AbstractContextManager[OneRequest | None]:
        """The same in ranks that have judged nothing yet; None where ranks cannot be replaced."""
        ...


@dataclass(frozen=True)
class _Judged:
    """One request of a set, and what was found; no report where the target refused it."""

    number: int
    name: str
    asked: Asked
    job: Job
    report: RunReport | None
    traces: Traces
    refusal: str = ""

    @property
    def verdict(self) -> Verdict | None:
        return None if self.report is None else self.report.verdict

    def to_dict(self) -> dict[str, Any]:
        return {
            "request": self.job.told,
            "again": self.asked.again,
            "verdict": None if self.verdict is None else str(self.verdict),
            "refused": self.refusal,
        }


def run_requests(job: Job, one: OneRequest) -> RunReport:
    """Judges every request of a checked job's set, and merges what is found.

    Raises:
        BadInput: the target refuses the first request.
    """
    asked = job.asked
    if len(asked) == 1:
        return one.judge(job, "")[0]
    began = time.monotonic()
    judged = list(_each(job, one, asked, began))
    reports = [each.report for each in judged if each.report is not None]
    repeats = _repeat(job, one, judged, len(asked))
    # What fails only after other requests is not reproduced by one alone.
    survives = any(f.verdict is Verdict.FAIL for f in repeats)
    commands = [job.command if survives or each.report is None else each.report.command for each in judged]
    findings = over_requests(
        [each.report.findings if each.report is not None else () for each in judged],
        [each.name for each in judged],
        commands,
    )
    findings += repeats
    if job.request_set == MATRIX:
        findings.append(_matter(job, one, judged))
    refused = [f"{each.name} was not judged: {each.refusal}" for each in judged if each.refusal]
    first = reports[0]
    timings = {**first.timings, "judging": sum(report.timings.get("judging", 0.0) for report in reports)}
    return replace(
        first,
        verdict=merge([*(f.verdict for f in findings), *(report.verdict for report in reports)]),
        findings=findings,
        timings=timings | {"total": time.monotonic() - began},
        notes=tuple(dict.fromkeys((*(note for report in reports for note in report.notes), *refused))),
        failure=next((_told(each) for each in judged if each.report is not None and each.report.failure), None),
        command=job.command,
        requests=tuple(each.to_dict() for each in judged),
    )


def _each(job: Job, one: OneRequest, asked: Sequence[Asked], began: float) -> Iterator[_Judged]:
    """Judges one request after the other. A sequence ends with the first that does not pass, a matrix goes on.

    A request that does not end ends the set where it is the first, or where the job's time is over: each of the others
    would take as long.
    """
    for number, each in enumerate(asked):
        name = f"request {number + 1} of {len(asked)} ({each.beside(job.request)})" if number else ""
        alone = job.asking(each)
        if each.optional:
            alone = replace(alone, timeout=min(job.timeout, time.monotonic() - began + _OPTIONAL_SECONDS))
        try:
            report, traces = one.judge(alone.checked(), f"request {number + 1} of {len(asked)}" if number else "")
        except BadInput as refusal:
            if not number:
                raise
            if _refuses(one, alone):
                yield _Judged(number, name, each, alone, None, {}, f"the target refuses it: {refusal}")
            elif each.optional:
                yield _Judged(number, name, each, alone, None, {}, f"the loop refuses it: {refusal}")
            else:
                raise BadInput(f"in {name}: {refusal}") from refusal  # The loop, and not the target, is to blame.
            continue
        if each.optional and report.verdict is Verdict.UNKNOWN:
            yield _Judged(number, name, each, alone, None, {}, _why_unknown(report))
            continue
        if number:
            report = _of_what_can_be_seen(alone, report)
        yield _Judged(number, name, each, alone, report, traces)
        passed = report.verdict.holds
        if not passed and (job.request_set == SEQUENCE or (not number and not traces)):
            return
        if time.monotonic() - began > job.timeout:
            return


def _why_unknown(report: RunReport) -> str:
    """Why nothing can be said of a request that a loop need not serve."""
    if report.failure is not None:
        return f"the loop may not be written for it: {report.failure['cause']}"
    unknown = [finding.summary for finding in report.findings if finding.verdict is Verdict.UNKNOWN]
    return next(iter((*unknown, *report.notes)), "it could not be judged")


def _refuses(one: OneRequest, job: Job) -> bool:
    """Whether the target cannot serve the request at all: then its reference cannot run either."""
    try:
        one.reference(job.checked(), "the reference alone")
    except BadInput:
        return True
    return False


def _of_what_can_be_seen(job: Job, report: RunReport) -> RunReport:
    """A request that guides no step is judged without the checks that need one; other requests show what those see."""
    if job.resolved.schedule.guided_steps or not report.findings:
        return report
    findings = [f for f in report.findings if f.name not in _OF_GUIDED_STEPS or f.verdict is Verdict.FAIL]
    return replace(report, findings=findings, verdict=merge(f.verdict for f in findings))


def _told(judged: _Judged) -> dict[str, Any]:
    assert judged.report is not None
    failure = dict(judged.report.failure or {})
    return failure | ({"task": f"{failure['task']} in {judged.name}"} if judged.name else {})


def _repeat(job: Job, one: OneRequest, judged: Sequence[_Judged], total: int) -> list[Finding]:
    """Whether what came before a request changes its bytes; for each loop."""
    survivors = _survivors(job, one, judged)
    if survivors:
        return survivors
    again = next((each for each in judged if each.asked.again and each.traces), None)
    last = judged[-1]
    unseen = next((e for e in judged if e.report is not None and not e.report.findings), None)
    others = sum(each.verdict is not None for each in judged) - 2
    reason = ""
    if again is None:
        reason = f"{last.name or f'request 1 of {total}'} did not pass, so that none was judged twice"
    elif unseen is not None:
        reason = f"{unseen.name} could not be judged"
    elif not others:
        reason = "the target refuses every other request, so that none came between the first and itself"
    compared: list[Between] = []
    alone = None if reason else _in_fresh_ranks(one, judged)
    findings = []
    for loop in job.kinds():
        if again is not None:
            pairs = zip(judged[0].traces[loop], again.traces[loop], strict=True)
            compared = [Between(first, second, (", the first time", ", again")) for first, second in pairs]
        if alone is not None:
            before, after = alone
            own = after.traces[loop][0]
            if job.reference == ROUNDING:  # A loop need not have the reference's bytes; the reference has its own.
                own = one.reference(after.job, "the reference once more")
            before = of_shard(before, own, after.job.layout)
            compared.append(Between(before, own, (" in fresh ranks", f", {after.name}")))
        findings.append(requests_repeat(loop, compared, others, reason))
    return findings


def _in_fresh_ranks(one: OneRequest, judged: Sequence[_Judged]) -> tuple[Trace, _Judged] | None:
    """The reference of a later request in ranks that served no other, and that request as it was judged.

    State that a target keeps changes reference and loops alike; only a process that never saw another request differs.
    """
    passed = [each for each in judged[1:] if _holds(each.verdict) and not each.asked.again]
    after = min(passed, key=lambda each: (each.job.ranks, each.job.request.num_timesteps), default=None)
    with one.afresh() as fresh:
        if fresh is None or after is None:
            return None
        try:
            return fresh.reference(after.job, "the reference in fresh ranks"), after
        except (RankFailure, Unjudged):
            return None  # Its time is over: the repetition of the first request is told nevertheless.


def _survivors(job: Job, one: OneRequest, judged: Sequence[_Judged]) -> list[Finding]:
    """For a later request that fails: whether it fails alone, in fresh ranks, too. Findings only if it does not."""
    failing = next((e for e in judged[1:] if e.report is not None and not e.asked.again and _failed(e.report)), None)
    if failing is None or not _holds(judged[0].verdict):
        return []
    with one.afresh() as fresh:
        if fresh is None or not fresh.judge(failing.job, f"{failing.name}, alone")[0].verdict.holds:
            return []
    assert failing.report is not None
    failure = failing.report.failure
    findings = []
    for loop in job.kinds():
        found = next((f for f in failing.report.findings if f.loop == loop and f.verdict is Verdict.FAIL), None)
        ended = failure is None or failure["task"] not in (loop, "reference")
        if found is None and ended:
            findings.append(requests_repeat(loop, (), 0, f"{failing.name} did not pass, so that none was judged twice"))
        else:
            findings.append(survived(loop, failing.name, found, "" if failure is None else str(failure["cause"])))
    return findings


def _holds(verdict: Verdict | None) -> bool:
    return verdict is not None and verdict.holds


def _failed(report: RunReport) -> bool:
    return report.verdict is Verdict.FAIL or report.failure is not None


def _matter(job: Job, one: OneRequest, judged: Sequence[_Judged]) -> Finding:
    """Whether each parameter changes the reference's bytes in some request of the set."""
    ignored = getattr(find_target(job.target), "ignores", ())
    cheapest = sorted(
        (each for each in judged if _holds(each.verdict) and not each.asked.again),
        key=lambda each: each.job.request.num_timesteps * each.job.ranks,
    )
    shown_by: dict[str, str | None] = {}
    left_out: dict[str, str] = {}
    elements = 0
    for parameter in PARAMETERS:
        if parameter.partition(",")[0] in ignored:
            left_out[parameter] = "the target says that it does not read it"
            continue
        tried = False
        for each in cheapest:
            right = next(iter(each.traces.values()))[0]
            if job.reference == ROUNDING:
                right = one.reference(each.job.checked(), "the reference itself")
            for changed in neighbours(each.asked, parameter, each.job.resolved.schedule):
                try:
                    other = one.reference(job.asking(changed).checked(), f"the reference with another {parameter}")
                except (BadInput, Unjudged) as reason:
                    left_out[parameter] = str(reason)
                    continue
                tried = True
                elements += other.final.numel()
                part = of_shard(other, right, each.job.layout)
                if Pair(replace(right, replica=None), part).divergence() is not None:
                    shown_by[parameter] = each.name or "the first request"
                    break
            if parameter in shown_by:
                break
        if parameter not in shown_by:
            if tried:
                shown_by[parameter] = None
            else:
                left_out.setdefault(parameter, "no request lets it be changed alone")
        if parameter in shown_by:
            left_out.pop(parameter, None)
    return requests_matter(shown_by, left_out, elements)
