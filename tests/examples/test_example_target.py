"""The worked example of README.md beside this file: an engine that is no Bagel passes, and its bug is placed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from verify.commands.cli import main
from verify.errors import BadInput
from verify.report.documents.reading import document_of
from verify.request import DenoiseRequest
from verify.runner.job import Job
from verify.runner.run import run_job
from verify.runner.run_report import RunReport
from verify.verdict import Verdict

pytestmark = pytest.mark.gate

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def verified(name: str, request: DenoiseRequest | None = None, **how: str) -> RunReport:
    target = f"{HERE / 'toy_target.py'}:{name}"
    report = run_job(Job(target=target, request=request or DenoiseRequest(num_timesteps=8), **how))  # type: ignore[arg-type]
    assert report.failure is None, report.failure
    assert document_of(msgspec.to_builtins(report.document)) == report.document
    return report


def test_the_example_passes() -> None:
    report = verified("ToyTarget")
    assert {f.name: f.summary for f in report.findings if f.verdict is not Verdict.PASS} == {}
    assert report.verdict is Verdict.PASS
    # Its own schedule, not Bagel's: 8 timesteps are 8 steps here, all of them guided.
    assert (report.steps, report.guided_steps) == (8, 8)
    assert report.collectives == {"parallel": {"all_gather": 8, "broadcast": 1}}
    assert {f.loop for f in report.findings} == {"parallel", "*"}


def test_its_bug_is_caught_and_placed() -> None:
    report = verified("BrokenTarget")
    failed = {f.name: f for f in report.findings if f.verdict is Verdict.FAIL}
    assert report.exit_status == 1
    assert set(failed) == {"ranks_agree", "matches_reference"}
    first = failed["ranks_agree"].first_divergence
    assert first is not None
    assert (first.step, first.ranks) == (0, (0, 1))


@pytest.mark.parametrize(("name", "verdict"), [("ToyTarget", Verdict.PASS), ("BrokenTarget", Verdict.FAIL)])
def test_each_step_is_judged_although_the_engine_cannot_take_one_alone(name: str, verdict: Verdict) -> None:
    """Its scheduler makes its own steps and counts them; the reference's own run is then the answer."""
    assert verified(name, reference="inductive", requests="one").verdict is verdict


def test_a_guidance_that_it_does_not_have_is_refused() -> None:
    with pytest.raises(BadInput, match=r"cfg_img_scale is 1\.5, expected 1\.0: two branches only; leave it out"):
        verified("ToyTarget", DenoiseRequest(cfg_img_scale=1.5))


@pytest.mark.parametrize(("name", "status"), [("ToyTarget", 0), ("BrokenTarget", 1)])
@pytest.mark.usefixtures("judged_once")
def test_from_the_command_line_as_the_guide_says(
    name: str, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["run", "--target", f"tests/examples/toy_target.py:{name}"]) == status, capsys.readouterr()


@pytest.mark.nightly
def test_the_claims_against_it() -> None:
    """What it does not offer is named, not passed."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/claims"]
    command += ["--target", "tests/examples/toy_target.py:ToyTarget"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "not judged: text_and_image: cfg_img_scale is 1.5, expected 1.0: two branches only" in ended.stdout
