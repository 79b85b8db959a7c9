"""Windows of steps on real ranks: what is found with every step kept is found with a few at a time."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from verify.request import DenoiseRequest
from verify.runner.job import Job
from verify.runner.run import run_job
from verify.runner.run_report import RunReport
from verify.verdict import Verdict

LOOPS = Path(__file__).with_name("broken_loops.py")
FEW = DenoiseRequest(num_timesteps=12)


def judged(name: str, window: int | None, request: DenoiseRequest = FEW) -> RunReport:
    return run_job(Job(loop_reference=f"{LOOPS}:{name}", request=request, window=window, requests="one"))


@cache
def in_full(name: str) -> RunReport:
    """With every step kept, at Bagel's 49 steps."""
    return judged(name, None, DenoiseRequest())


def same(full: RunReport, parts: RunReport) -> None:
    """The same verdicts, places and counts; and one check more, which says that the passes belong together."""
    *of_parts, together = parts.findings
    assert (together.name, together.verdict) == ("windows_agree", Verdict.PASS)
    assert len(of_parts) == len(full.findings)
    for a, b in zip(full.findings, of_parts, strict=True):
        # As text: a NaN is not equal to itself.
        assert repr((a.name, a.verdict, a.summary, a.first_divergence, a.compared)) == repr(
            (b.name, b.verdict, b.summary, b.first_divergence, b.compared)
        )
        assert a.data.get("pairs") == b.data.get("pairs")
        assert a.data.get("location") == b.data.get("location")
    assert full.verdict is parts.verdict
    assert full.collectives == parts.collectives


@pytest.mark.parametrize("name", ["right", "never_gathers"])
def test_a_window_at_a_time(name: str) -> None:
    same(judged(name, None), judged(name, 4))


@pytest.mark.nightly
@pytest.mark.parametrize("window", [30, 7])
@pytest.mark.parametrize(
    "name",
    ["one_bit", "sign_of_zero", "nan_payload", "no_initial_broadcast", "reversed_gather", "extra_broadcast",
     "cache_write", "never_gathers", "shows_another", "right_with_views"],
)  # fmt: skip
def test_every_broken_loop(name: str, window: int) -> None:
    same(in_full(name), judged(name, window, DenoiseRequest()))


@pytest.mark.nightly
def test_a_loop_that_does_not_repeat_itself() -> None:
    """It departs from the reference too, which does; that its windows are not of one run is told beside that."""
    report = judged("another_each_time", 4)
    assert report.verdict is Verdict.FAIL
    verdicts = {f.name: f.verdict for f in report.findings if f.verdict is not Verdict.PASS}
    assert verdicts == {"matches_reference": Verdict.FAIL, "windows_agree": Verdict.UNKNOWN}
    (finding,) = [f for f in report.findings if f.name == "windows_agree"]
    assert "computed otherwise in pass 1 than in pass 0" in finding.summary
