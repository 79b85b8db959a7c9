"""Loops that are right and have other bits are explained by rounding, and what is wrong in them is found."""

from __future__ import annotations

import pytest
from rounding_runs import CONFIGURATIONS, clean_runs

from verify.faults import FAULTS
from verify.faults.runner import job_of
from verify.gate.verifier import Verifier
from verify.request import DenoiseRequest
from verify.rounding.decide import Word
from verify.runner.job import Job
from verify.runner.run import job_for, run_job
from verify.verdict import Verdict

SHARDED = "tests/helpers/inexact_targets.py:Sharded"
FEW = DenoiseRequest(height=128, width=128, num_timesteps=3)


def test_two_shards_are_explained_by_rounding(pytestconfig: pytest.Config) -> None:
    report = Verifier(pytestconfig).assert_explained(FEW, target=SHARDED, loops=("local",), draws=8, requests="one")
    assert report.verdict is Verdict.EXPLAINED and report.exit_status == 0
    (judged,) = report.document.rounding
    assert (judged.loop, judged.decision, judged.judged) == ("local", "explained by rounding", 2)
    assert "≈ explained by rounding" in report.text() and "--reference rounding" in report.command


def test_a_fault_among_rounding_is_found_and_placed(pytestconfig: pytest.Config) -> None:
    job = Job(FEW, target=SHARDED, reference="rounding", draws=8)
    report = run_job(job_of(FAULTS["kv_cut"], job, 2))
    assert report.verdict is Verdict.FAIL
    (finding,) = [finding for finding in report.findings if finding.name == "rounding_explains"]
    assert finding.summary.startswith("not explained: ")
    location = finding.data["location"]
    assert (location["step"], location["rank"], location["tensor"]) == (0, 0, "velocity of gen")
    assert "scaled_dot_product" in location["operator"]


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_a_thousand_varied_clean_runs_across_kernels() -> None:
    runs = clean_runs(0, CONFIGURATIONS)
    assert len(runs) >= 1000
    assert [run for run in runs if run[3] in (Word.NOT_EXPLAINED, Word.UNKNOWN)] == []


@pytest.mark.gpu
@pytest.mark.timeout(600)
def test_one_step_of_7b_on_one_gpu_takes_less_than_two_minutes() -> None:
    request = DenoiseRequest(height=1024, width=1024, num_timesteps=2)
    job = Job(request, target=SHARDED, loops=("round_robin",), world_size=1, device="cuda", reference="rounding",
              requests="one", timeout=600.0)  # fmt: skip
    # A recorded pass would have the reference's bits: the shards are made while Python runs.
    report = run_job(job_for(job, preset="7b", autocast=True, cuda_graph=False))
    (finding,) = [finding for finding in report.findings if finding.name == "rounding_explains"]
    assert finding.verdict is Verdict.EXPLAINED, finding.summary
    assert report.timings["judging"] < 120, report.timings
