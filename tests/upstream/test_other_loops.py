"""Bagel's step execution, Lance and the families by the mixin: what their loops do, and two faults of 0.30.0."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from verify.request import DenoiseRequest
from verify.runner.job import Job
from verify.runner.requests import ONE
from verify.runner.run import run_job
from verify.runner.run_report import RunReport
from verify.targets.vllm_omni.families.registry import FAMILIES
from verify.verdict import Verdict

HERE = Path(__file__).parent


def judged(target: str, **job: Any) -> RunReport:
    report = run_job(Job(request=DenoiseRequest(num_timesteps=8), target=target, requests=ONE, **job))
    if not report.findings:
        pytest.skip(f"not in this release: {'; '.join(report.notes[-1:])}")
    return report


def failed(report: RunReport) -> dict[str, Any]:
    assert {f.name for f in report.findings if f.verdict is Verdict.UNKNOWN} == set()
    return {f.name: f.first_divergence for f in report.findings if f.verdict is Verdict.FAIL}


def test_step_execution_shares_no_noise() -> None:
    found = failed(judged("vllm_omni", loops=("stepwise",)))
    assert set(found) == {"ranks_agree", "matches_reference"}
    assert (found["ranks_agree"].step, found["ranks_agree"].ranks) == (0, (0, 1))


def test_step_execution_that_shares_its_noise_is_the_reference_in_every_byte() -> None:
    assert failed(judged("vllm_omni", loop_reference=f"{HERE / 'broken_upstream.py'}:stepwise_mended")) == {}


def test_lance_loses_its_first_frame() -> None:
    found = failed(judged("vllm_omni_lance"))
    assert set(found) == {"matches_reference"}, "ranks agree: only the comparison with one process sees it"
    first = found["matches_reference"]
    assert first.step == 0
    assert first.difference.index[0] < 4, "a pinned token"


def test_lance_without_a_first_frame() -> None:
    assert failed(judged("vllm_omni_lance?pinned=0")) == {}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family(family: str) -> None:
    assert failed(judged(f"vllm_omni_family?family={family}")) == {}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_familys_noise_is_not_shared(family: str) -> None:
    found = failed(judged(f"vllm_omni_family?family={family}&noise=own"))
    assert (found["ranks_agree"].step, found["ranks_agree"].ranks) == (-1, (0, 1))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("fault", "step"), [("scale_of_one_rank", 0), ("gather_skipped", 2), ("one_element", 2)])
def test_a_planted_fault(family: str, fault: str, step: int) -> None:
    report = judged(f"vllm_omni_family?family={family}", loop_reference=f"{HERE / 'broken_families.py'}:{fault}")
    assert failed(report)["ranks_agree"].step == step
