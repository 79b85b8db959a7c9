"""vllm-omni's loop through every check, and the negative controls of each."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest
from expected import Facts

from verify.report.documents.reading import document_of
from verify.request import RENORM_TYPES, DenoiseRequest
from verify.runner.job import Job
from verify.runner.requests import ONE
from verify.runner.run import run_job
from verify.runner.run_report import RunReport
from verify.verdict import Finding, Verdict

LOOPS = Path(__file__).with_name("broken_upstream.py")
CHECKS = {
    "ranks_agree",
    "matches_reference",
    "schedule",
    "collectives",
    "sent_as_computed",
    "parallelism_engaged",
    "cache_frozen",
    "state_frozen",
    "observed",
    "finite",
    "environments_agree",
    "not_vacuous",
}
BY_WORLD: dict[int, dict[str, Any]] = {2: {}, 3: {"cfg_img_scale": 1.5}}


@cache
def judged(world_size: int, loop: str | None = None, renorm: str = "global", num_timesteps: int = 50) -> RunReport:
    request = DenoiseRequest(num_timesteps=num_timesteps, cfg_renorm_type=renorm, **BY_WORLD[world_size])  # type: ignore[arg-type]
    reference = None if loop is None else f"{LOOPS}:{loop}"
    report = run_job(Job(request=request, target="vllm_omni", loop_reference=reference, requests=ONE))
    assert report.failure is None, report.failure
    assert report.findings, report.notes
    assert document_of(msgspec.to_builtins(report.document)) == report.document
    assert {f.name for f in report.findings} == CHECKS
    assert len(report.environment) == world_size
    return report


def failed(report: RunReport) -> dict[str, Finding]:
    assert {f.name for f in report.findings if f.verdict is Verdict.UNKNOWN} == set()
    return {f.name: f for f in report.findings if f.verdict is Verdict.FAIL}


@pytest.mark.parametrize("renorm", RENORM_TYPES)
@pytest.mark.parametrize("world_size", [2, 3])
def test_only_the_schedule_can_fail(facts: Facts, world_size: int, renorm: str) -> None:
    report = judged(world_size, renorm=renorm)
    if not facts.extra_points:
        assert failed(report) == {}
        assert report.exit_status == 0
        return
    assert set(failed(report)) == {"schedule"}
    assert report.exit_status == 1
    finding = failed(report)["schedule"]
    assert finding.summary.startswith("rank 0 took 50 Euler steps, expected 49")
    assert "vllm-omni issue 4470" in finding.details[0]


def test_the_report_says_what_is_upstream_and_what_was_substituted() -> None:
    notes = judged(2).notes
    assert "loop, combine, process groups, transformer, KV caches" in notes[0]
    assert sum(note.startswith("substituted: ") for note in notes) >= 5
    assert judged(2).environment[0]["vllm_omni"] in notes[0]


@pytest.mark.parametrize("world_size", [2, 3])
def test_a_step_on_the_bound(facts: Facts, world_size: int) -> None:
    """At 12 points a step falls on t = 0.4, which float32 and float64 compare differently."""
    report = judged(world_size, num_timesteps=12)
    if facts.bound_in_float32:
        assert failed(report) == {}
    elif not facts.extra_points:
        assert set(failed(report)) == {"schedule"}
        finding = failed(report)["schedule"]
        assert finding.summary.startswith("rank 0 guides step 9 at t = 0.4000000059604645, which the schedule does not")
        assert "float64" in finding.details[0]
        assert finding.first_divergence is not None and finding.first_divergence.step == 9


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_way_to_inject_faults_is_itself_no_fault(facts: Facts, world_size: int) -> None:
    assert set(failed(judged(world_size, "right"))) == ({"schedule"} if facts.extra_points else set())


@pytest.mark.parametrize("world_size", [2, 3])
def test_initial_broadcast_dropped(world_size: int) -> None:
    found = failed(judged(world_size, "no_broadcast"))
    first = found["ranks_agree"].first_divergence
    assert first is not None
    assert (first.step, first.ranks) == (-1, (0, 1))
    assert found["collectives"].summary == "rank 0 called all_gather in step 0, expected broadcast, all_gather"


@pytest.mark.parametrize("world_size", [2, 3])
def test_gathered_order_swapped_on_every_rank(world_size: int) -> None:
    report = judged(world_size, "swapped_everywhere")
    found = failed(report)
    assert "ranks_agree" not in found
    first = found["matches_reference"].first_divergence
    assert first is not None
    assert first.step == 0
    assert first.difference is not None
    assert first.difference.mismatched > first.difference.of // 2


@pytest.mark.parametrize("world_size", [2, 3])
def test_gathered_order_swapped_on_one_rank(world_size: int) -> None:
    found = failed(judged(world_size, "swapped_on_last_rank"))
    first = found["ranks_agree"].first_divergence
    assert first is not None
    assert first.step == 0
    assert world_size - 1 in first.ranks
    wrong = found["matches_reference"].first_divergence
    assert wrong is not None
    assert wrong.ranks == (0, world_size - 1)


def test_a_cache_that_is_updated() -> None:
    """Upstream updates a cache by putting another tensor in place: nothing is written to the one that was there."""
    found = failed(judged(2, "writes_to_cache"))
    first = found["cache_frozen"].first_divergence
    assert first is not None
    assert (first.step, first.ranks, first.tensor) == (4, (0, 0), "gen cache, keys, layer 1")
    again = failed(judged(2, "right"))
    assert "cache_frozen" not in again
