"""A sharded and a reducing engine pass, and what is broken in them is placed at its rank and step, with its cause."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from verify.report.documents.reading import document_of
from verify.request import DenoiseRequest
from verify.runner.job import Job
from verify.runner.run import run_job
from verify.runner.run_report import RunReport
from verify.verdict import Finding, Verdict

pytestmark = pytest.mark.gate

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def verified(target: str, **job: object) -> RunReport:
    request = DenoiseRequest(num_timesteps=8)
    report = run_job(Job(target=f"{HERE / target}", request=request, **job))  # type: ignore[arg-type]
    assert report.failure is None, report.failure
    return report


def failed(report: RunReport) -> dict[str, Finding]:
    return {finding.name: finding for finding in report.findings if finding.verdict is Verdict.FAIL}


def place(finding: Finding) -> tuple[int | None, int]:
    assert finding.first_divergence is not None
    return finding.first_divergence.step, finding.first_divergence.ranks[1]


@pytest.mark.parametrize("ranks", [4, 8])
def test_a_sharded_engine_passes(ranks: int) -> None:
    report = verified("sharded_target.py:ShardedTarget", world_size=ranks)
    assert {f.name: f.summary for f in report.findings if f.verdict is not Verdict.PASS} == {}
    assert report.collectives == {"parallel": {"all_gather": 9, "broadcast": 1}}
    assert [rank["coordinates"] for rank in report.environment][-1] == f"branch uncond, shard {ranks // 2 - 1}"


def test_a_reducing_engine_passes() -> None:
    report = verified("reducing_target.py:ReducingTarget")
    assert {f.name: f.summary for f in report.findings if f.verdict is not Verdict.PASS} == {}
    assert report.collectives == {"parallel": {"all_reduce": 8}}


def test_branches_swapped_on_one_of_four_ranks() -> None:
    found = failed(verified("sharded_target.py:BranchesSwapped", requests="one"))
    assert set(found) == {"ranks_agree", "matches_reference"}
    assert [place(finding) for finding in found.values()] == [(0, 3), (0, 3)]
    assert "rank 3 (branch uncond, shard 1) of parallel differ in x_t after step 0" in found["ranks_agree"].summary


def test_a_broadcast_that_nobody_declared() -> None:
    found = failed(verified("sharded_target.py:SharedAgain", requests="one"))
    assert set(found) == {"collectives"}
    assert found["collectives"].summary == (
        "rank 0 (branch cond, shard 0) called broadcast, all_gather, broadcast in step 0, "
        "expected broadcast, all_gather"
    )


def test_a_weight_off_on_one_rank() -> None:
    found = failed(verified("reducing_target.py:WeightOff", requests="one"))
    assert set(found) == {"matches_reference", "sent_as_computed"}
    assert place(found["sent_as_computed"]) == (3, 1)
    assert "the velocity of uncond" in found["sent_as_computed"].summary


def test_seeds_that_should_be_equal() -> None:
    found = failed(verified("reducing_target.py:SeedsDiffer", requests="one"))
    assert place(found["ranks_agree"]) == (-1, 1)
    assert found["ranks_agree"].summary == (
        "rank 0 and rank 1 were given different noise, and the target says that every rank draws the same from one seed"
    )


@pytest.mark.parametrize(
    ("target", "ranks", "told"),
    [
        ("sharded_target.py:ShardedTarget", 5, "world size is 5, expected 4, the 2 branch groups of 2"),
        ("sharded_target.py:ShardedTarget", 1, "shards of a layout is 0, expected an integer from 1"),
    ],
)
def test_ranks_that_cannot_be_laid_out(target: str, ranks: int, told: str) -> None:
    command = [sys.executable, "-m", "verify", "run", "--target", f"{HERE / target}", "--world-size", str(ranks)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 2
    assert told in ended.stderr


@pytest.mark.parametrize("name", ["sharded_target.py", "reducing_target.py"])
def test_a_target_is_short(name: str) -> None:
    """What is broken on purpose, and what is imported, is not counted."""
    lines = (HERE / name).read_text().partition("class Denoiser")[2].partition("\n\n\nclass _")[0].splitlines()
    assert 1 + len([line for line in lines if line.strip()]) <= 60


def test_documents_of_layouts() -> None:
    report = verified("reducing_target.py:ReducingTarget", requests="one")
    assert document_of(msgspec.to_builtins(report.document)) == report.document
