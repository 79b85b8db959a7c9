"""The suite sees what is wrong with a loop, and says exactly where."""

from __future__ import annotations

import math
import time
from pathlib import Path

import msgspec
import pytest
from patience import patient

from verify.errors import BadInput
from verify.ranks.plan import place
from verify.report.documents.reading import document_of
from verify.runner.job import Job
from verify.runner.run import pool_for, run_job
from verify.runner.run_report import RunReport
from verify.verdict import Finding, Verdict

LOOPS = Path(__file__).with_name("broken_loops.py")


def verify_loop(name: str, **changes: object) -> RunReport:
    report = run_job(Job(loop_reference=f"{LOOPS}:{name}", loops=(), requests="one", **changes))  # type: ignore[arg-type]
    assert document_of(msgspec.to_builtins(report.document)) == report.document
    return report


def failures(report: RunReport) -> dict[str, Finding]:
    assert report.verdict is Verdict.FAIL
    assert report.exit_status == 1
    return {f.name: f for f in report.findings if f.verdict is Verdict.FAIL}


@pytest.mark.parametrize("name", ["right", "right_with_views"])
def test_a_right_loop_passes(name: str) -> None:
    report = verify_loop(name)
    assert {f.name: f.verdict for f in report.findings if f.verdict is not Verdict.PASS} == {}
    assert report.verdict is Verdict.PASS


def test_one_mantissa_bit() -> None:
    found = failures(verify_loop("one_bit"))
    assert set(found) == {"ranks_agree", "matches_reference"}
    for name in found:
        first = found[name].first_divergence
        assert first is not None
        assert first.difference is not None
        assert (first.step, first.ranks) == (7, (0, 1))
        assert (first.difference.index, first.difference.mismatched, first.difference.ulp) == ((3, 5), 1, 1)
        a, b = (int(bits, 16) for bits in first.difference.bits)
        assert a ^ b == 1


def test_sign_of_zero() -> None:
    first = failures(verify_loop("sign_of_zero"))["ranks_agree"].first_divergence
    assert first is not None
    assert first.difference is not None
    assert (first.step, first.ranks, first.difference.index) == (48, (0, 1), (0, 2))
    assert first.difference.bits == ("0x00000000", "0x80000000")


def test_nan_payload() -> None:
    found = failures(verify_loop("nan_payload"))
    first = found["ranks_agree"].first_divergence
    assert first is not None
    assert first.difference is not None
    assert (first.step, first.difference.index) == (48, (1, 1))
    assert first.difference.bits == ("0x7fc00000", "0x7fc00001")
    assert all(math.isnan(value) for value in first.difference.values)
    assert "finite" in found


def test_no_initial_broadcast() -> None:
    found = failures(verify_loop("no_initial_broadcast"))
    assert found["ranks_agree"].first_divergence is not None
    assert found["ranks_agree"].first_divergence.step == -1
    assert found["collectives"].summary == "rank 0 called all_gather in step 0, expected broadcast, all_gather"


def test_gathered_in_the_wrong_order() -> None:
    found = failures(verify_loop("reversed_gather"))
    first = found["ranks_agree"].first_divergence
    assert first is not None
    assert (first.step, first.ranks) == (0, (0, 1))
    assert first.difference is not None
    assert first.difference.mismatched > first.difference.of // 2
    # Rank 0 did right: only rank 1 departs from the reference.
    assert found["matches_reference"].first_divergence is not None
    assert found["matches_reference"].first_divergence.ranks == (0, 1)
    assert "rank 0 of reference and rank 0 of" in " ".join(found["matches_reference"].details)


def test_an_added_broadcast() -> None:
    found = failures(verify_loop("extra_broadcast"))
    assert set(found) == {"collectives"}
    finding = found["collectives"]
    assert finding.summary == "rank 0 called all_gather, broadcast in step 3, expected all_gather"
    assert "in the whole loop, broadcast: 2 on rank 0, 2 on rank 1, expected 1" in finding.details


def test_a_write_into_a_cache() -> None:
    found = failures(verify_loop("cache_write"))
    first = found["cache_frozen"].first_divergence
    assert first is not None
    assert first.difference is not None
    assert (first.step, first.ranks, first.tensor) == (4, (0, 0), "gen cache, values, layer 1")
    assert first.difference.index == (0, 2, 0)
    assert found["ranks_agree"].verdict is Verdict.FAIL if "ranks_agree" in found else True


def test_the_cache_is_put_right_for_the_next_loop() -> None:
    failures(verify_loop("cache_write"))
    assert verify_loop("right").verdict is Verdict.PASS


def test_a_loop_that_never_gathers() -> None:
    found = failures(verify_loop("never_gathers"))
    assert set(found) == {"collectives", "parallelism_engaged"}
    assert "rank 0 evaluated gen, text, expected gen in step 0 (guided)" in found["parallelism_engaged"].summary
    assert "in the whole loop, all_gather: 0 on rank 0, 0 on rank 1, expected 41" in found["collectives"].details


def test_a_loop_that_shows_another_x_t() -> None:
    found = failures(verify_loop("shows_another"))
    assert found["observed"].first_divergence is not None
    assert found["observed"].first_divergence.step == 1


@pytest.mark.parametrize(
    ("name", "state", "what"),
    [
        ("raises_on_rank_1", "raised", "raised RuntimeError: the scheduler ran out of steps"),
        ("sleeps_on_rank_1", "hung", "did not finish in time"),
        ("exits_on_rank_1", "died", "exited with status 7"),
    ],
)
def test_a_loop_that_does_not_end(name: str, state: str, what: str) -> None:
    began = time.monotonic()
    timeout = patient(4.0)
    report = verify_loop(name, timeout=timeout)
    assert time.monotonic() - began < timeout + patient(10.0)
    assert report.verdict is Verdict.UNKNOWN
    assert report.exit_status == 3
    assert report.failure is not None
    first = report.failure["ranks"][0]
    assert (first["rank"], first["state"], first["what"], first["step"]) == (1, state, what, 5)
    other = report.failure["ranks"][1]
    assert other["activity"] == "all_gather 1 of step 6" or other["state"] == "raised"
    if name != "exits_on_rank_1":
        assert "broken_loops.py" in first["trace"]
        assert "all_gather" in other["trace"]
    pool = pool_for(place(2, "cpu").spec)
    assert pool.pids == []
    assert verify_loop("right").verdict is Verdict.PASS


def test_sys_exit_is_a_failure_of_the_loop() -> None:
    report = verify_loop("calls_sys_exit")
    assert report.verdict is Verdict.UNKNOWN
    assert report.failure is not None
    assert report.failure["ranks"][0]["what"] == "raised SystemExit: 0"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wrong_shape", "what the loop returned is float32 (63, 16) on cpu, expected float32 (64, 16) on cpu, as x_0; "
         "keep x_t in x_0's shape, dtype and device"),
        ("returns_nothing", "what the loop returned is 'NoneType', expected a tensor; pass the latent itself"),
        ("forgets_observe", "the number of steps observed is 0, expected 49; call observe(step, x_t) after each step"),
        ("observes_twice", "the step given to observe is 0, expected 1; call it once after each step, in order"),
        ("observes_half", "the x_t given to observe is float16 (64, 16) on cpu, expected float32 (64, 16) on cpu, "
         "as x_0; keep x_t in x_0's shape, dtype and device"),
    ],
)  # fmt: skip
def test_a_loop_that_breaks_its_contract(name: str, message: str) -> None:
    with pytest.raises(BadInput) as caught:
        verify_loop(name)
    # Where the loop called observe comes behind it.
    assert str(caught.value).partition(f" ({LOOPS}:")[0] == message
