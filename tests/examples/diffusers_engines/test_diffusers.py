"""Three engines on diffusers: each right target passes, each broken one fails with its rank, step and cause.

Run by ``tox run -e diffusers``, which installs diffusers; elsewhere nothing here is collected.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from verify.request import DenoiseRequest
from verify.runner.job import Job
from verify.runner.requests import ONE, SEQUENCE
from verify.runner.run import run_job
from verify.runner.run_report import RunReport
from verify.verdict import Finding, Verdict

HERE = Path(__file__).parent
REQUEST = DenoiseRequest(num_timesteps=8)


def verified(name: str, requests: str = ONE, reference: str = "full") -> RunReport:
    job = Job(target=f"{HERE / name}", request=REQUEST, requests=requests, reference=reference)
    report = run_job(job)
    assert report.failure is None, report.failure
    return report


def failed(report: RunReport) -> dict[str, Finding]:
    return {finding.name: finding for finding in report.findings if finding.verdict is Verdict.FAIL}


@pytest.mark.parametrize("name", ["sd3.py:SD3Target", "wan.py:WanTarget", "sdxl.py:AncestralTarget"])
def test_a_right_engine_passes(name: str) -> None:
    report = verified(name, SEQUENCE)
    assert {f.name: f.summary for f in report.findings if f.verdict is not Verdict.PASS} == {}


@pytest.mark.parametrize("name", ["wan.py:WanTarget", "sdxl.py:AncestralTarget"])
def test_a_sampler_that_remembers_is_taken_step_by_step(name: str) -> None:
    report = verified(name, reference="inductive")
    assert {f.name: f.summary for f in report.findings if f.verdict is not Verdict.PASS} == {}


@pytest.mark.parametrize(
    ("name", "check", "step", "rank", "said"),
    [
        ("sd3.py:OtherKernel", "sent_as_computed", 3, 1, "rank 1"),
        ("sd3.py:WrongTimestep", "schedule", 2, 1, "rank 1 asked the network for t = "),
        ("sd3.py:OtherWeight", "state_frozen", None, 1, "different weights"),
        ("wan.py:StaleTarget", "ranks_agree", -1, 1, "differ in state"),
        ("wan.py:LateTarget", "schedule", 3, 1, "rank 1 asked the network for expert = 'high' in step "),
        ("sdxl.py:OwnNoise", "ranks_agree", 0, 1, "differ in x_t"),
        ("sdxl.py:FallenBack", "ranks_agree", 0, 1, "differ in x_t"),
    ],
)
def test_a_broken_engine_fails_where_it_is_broken(
    name: str, check: str, step: int | None, rank: int, said: str
) -> None:
    finding = failed(verified(name))[check]
    first = finding.first_divergence
    assert first is not None
    assert (first.step, first.ranks[1]) == (step, rank)
    assert said in finding.summary


@pytest.mark.parametrize("name", ["sdxl.py:OwnNoise", "sdxl.py:FallenBack"])
def test_the_generator_is_named_as_the_cause(name: str) -> None:
    finding = failed(verified(name))["ranks_agree"]
    assert any(line.startswith("cause: ") and "generator noise in step 0" in line for line in finding.details)


def test_a_document_of_another_target_has_no_word_of_bagel() -> None:
    text = str(verified("sdxl.py:AncestralTarget").document).lower()
    words = ("bagel", "renorm", "cfg_img", "cfg_interval", "timestep_shift", "text_channel")
    assert [word for word in words if word in text] == []
