"""Several requests judged as one: which are judged, which may be left out, and what is told of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from verify.errors import BadInput
from verify.runner.job import Job
from verify.runner.one_request import blank_report
from verify.runner.run_report import RunReport
from verify.runner.sequence import run_requests
from verify.runner.tracing import Traces
from verify.trace.trace import Trace
from verify.verdict import Compared, Finding, Verdict

PASS = Finding("ranks_agree", "broadcast", Verdict.PASS, "equal", Compared(1, 1))
FAIL = replace(PASS, verdict=Verdict.FAIL, summary="not equal")
DEAD: dict[str, object] = {
    "task": "broadcast",
    "cause": "rank 2 raised ValueError: too many values to unpack",
    "ranks": [],
}


class Scripted:
    """Says of each request what a test has written for it; every request can be served by the reference."""

    def __init__(self, of: Callable[[Job], RunReport]) -> None:
        self.of = of
        self.judged: list[Job] = []

    def judge(self, job: Job, name: str) -> tuple[RunReport, Traces]:
        self.judged.append(job)
        return self.of(job), {}

    def reference(self, job: Job, name: str) -> Trace:
        raise AssertionError("the reference is not asked for where the report says enough")

    @contextmanager
    def afresh(self) -> Iterator[None]:
        yield None


def said(job: Job, finding: Finding, failure: dict[str, object] | None = None) -> RunReport:
    verdict = Verdict.UNKNOWN if failure else finding.verdict
    return replace(blank_report(job), verdict=verdict, findings=[] if failure else [finding], failure=failure)


def guides_by_the_image(job: Job) -> bool:
    return job.request.cfg_img_scale > 1.0


def test_a_request_with_other_branches_is_judged_in_ranks_of_their_number() -> None:
    one = Scripted(lambda job: said(job, PASS))
    run_requests(Job(loops=("broadcast",)), one)
    assert [job.ranks for job in one.judged] == [2, 2, 2, 3, 2]


@pytest.mark.parametrize("job", [Job(world_size=2), Job(device="cuda"), Job(requests="one")], ids=str)
def test_it_is_not_judged_where_ranks_or_requests_are_given(job: Job) -> None:
    assert not any(asked.optional for asked in job.asked)


def test_its_failure_is_the_runs() -> None:
    one = Scripted(lambda job: said(job, FAIL if guides_by_the_image(job) else PASS))
    report = run_requests(Job(loops=("broadcast",)), one)
    assert report.verdict is Verdict.FAIL
    found = next(finding for finding in report.findings if finding.name == "ranks_agree")
    assert found.summary.startswith("in request 4 of 5 (") and "image scale 1.7" in found.summary
    assert "--world-size 3" in found.data["command"]


def test_a_loop_that_is_not_written_for_it_is_judged_by_the_others() -> None:
    one = Scripted(lambda job: said(job, PASS, DEAD if guides_by_the_image(job) else None))
    report = run_requests(Job(loops=("broadcast",)), one)
    assert all(f.verdict is Verdict.PASS for f in report.findings if f.name != "requests_repeat")
    assert report.failure is None
    (note,) = [note for note in report.notes if "request 4 of 5" in note]
    assert "was not judged: the loop may not be written for it: rank 2 raised ValueError" in note
    assert one.judged[-1].request == one.judged[0].request


def test_a_loop_that_dies_in_another_request_is_not_let_off() -> None:
    one = Scripted(lambda job: said(job, PASS, DEAD if job.request.seed == 7 else None))
    report = run_requests(Job(loops=("broadcast",)), one)
    assert report.verdict is Verdict.UNKNOWN and report.failure is not None
    assert len(one.judged) == 2


def test_it_has_seconds_of_its_own() -> None:
    """A loop that is not written for it may wait for ever."""
    one = Scripted(lambda job: said(job, PASS))
    run_requests(Job(loops=("broadcast",), timeout=500.0), one)
    assert [job.timeout < 60.0 for job in one.judged] == [False, False, False, True, False]


def test_a_loop_that_refuses_it() -> None:
    class Refusing(Scripted):
        def judge(self, job: Job, name: str) -> tuple[RunReport, Traces]:
            if guides_by_the_image(job):
                raise BadInput("no image")
            return super().judge(job, name)

        def reference(self, job: Job, name: str) -> Trace:
            return None  # type: ignore[return-value]

    report = run_requests(Job(loops=("broadcast",)), Refusing(lambda job: said(job, PASS)))
    assert any(note.endswith("was not judged: the loop refuses it: no image") for note in report.notes)
