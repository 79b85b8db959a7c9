"""Clean runs never raise an alarm: the same one again and again, and a thousand that hypothesis draws."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from verify.request import RENORM_TYPES, DenoiseRequest
from verify.runner.job import Job
from verify.runner.run import run_job
from verify.schedule import Schedule
from verify.targets.protocol import ModelOptions
from verify.verdict import Verdict

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(7200)]


@st.composite
def jobs(draw: st.DrawFn) -> Job:
    """Clean jobs with at least one guided step, for either kind of guidance, on any number of ranks that fits."""
    bounds = st.sampled_from([0.0, 0.2, 0.4, 0.6, 0.8, 1.0]) | st.floats(0, 1)
    lo, hi = sorted((draw(bounds), draw(bounds)))
    points, shift = draw(st.integers(2, 12)), draw(st.sampled_from([1.0, 3.0]) | st.floats(0.1, 10.0))
    if not Schedule.of(points, shift, (lo, hi)).guided_steps:
        # The shift too: with some, the first timestep is one ULP above 1 in float32, and outside any interval.
        lo, hi, shift = 0.0, 1.0, 1.0
    image = draw(st.booleans())
    request = DenoiseRequest(
        height=16 * draw(st.integers(1, 8)),
        width=16 * draw(st.integers(1, 8)),
        num_timesteps=points,
        timestep_shift=shift,
        cfg_interval=(lo, hi),
        cfg_text_scale=draw(st.sampled_from([1.5, 4.0]) | st.floats(1.001, 20.0)),
        cfg_img_scale=draw(st.floats(1.001, 5.0)) if image else 1.0,
        cfg_renorm_type=draw(st.sampled_from(RENORM_TYPES)),
        cfg_renorm_min=draw(st.sampled_from([0.0, 1.0]) | st.floats(0, 1)),
        seed=draw(st.integers(0, 2**32)),
    )
    options = ModelOptions(dtype=draw(st.sampled_from(["bfloat16", "float32", "float64"])))
    if draw(st.booleans()):
        return Job(request, options, loops=("broadcast", "local"))
    return Job(request, options, loops=("round_robin",), world_size=draw(st.integers(2, 4)))


@settings(max_examples=1000, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
          suppress_health_check=list(HealthCheck))  # fmt: skip
@given(job=jobs())
def test_a_thousand_varied_clean_runs(job: Job) -> None:
    report = run_job(job)
    assert report.failure is None, report.failure
    assert {(f.loop, f.name): f.summary for f in report.findings if f.verdict is not Verdict.PASS} == {}, job.command


def test_the_same_clean_run_two_hundred_times() -> None:
    job = replace(Job(), loops=("broadcast", "local"))
    verdicts = [run_job(job).verdict for _ in range(200)]
    assert verdicts == [Verdict.PASS] * 200
