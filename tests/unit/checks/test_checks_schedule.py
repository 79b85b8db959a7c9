"""schedule on traces made by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from traces import STEPS, changed, clean, cut, evidence, extended, small_request, swapped

from verify.checks.judging import LoopRun, judge
from verify.checks.schedule_followed import schedule_followed
from verify.schedule import Schedule
from verify.verdict import Compared, Divergence, Finding, Verdict

TWO = small_request(2)


def assert_fails(finding: Finding, summary: str, step: int | None, ranks: tuple[int, int], tensor: str) -> None:
    assert (finding.verdict, finding.summary) == (Verdict.FAIL, summary)
    assert (finding.name, finding.loop) == ("schedule", "local")
    assert finding.first_divergence == Divergence(step, ranks, tensor)
    assert finding.compared.steps == STEPS and finding.compared.elements >= 2


def test_the_schedule_is_followed() -> None:
    finding = schedule_followed(clean(TWO), TWO)
    assert (finding.name, finding.loop, finding.verdict) == ("schedule", "local", Verdict.PASS)
    assert finding.summary == "7 Euler steps on every rank; the sizes of the steps were not seen"
    assert finding.compared == Compared(STEPS, 2)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("steps", [STEPS - 1, STEPS + 1])
def test_a_step_too_few_or_too_many(rank: int, steps: int) -> None:
    traces = clean(TWO)
    traces[rank] = cut(traces[rank], steps) if steps < STEPS else extended(traces[rank])
    summary = f"rank {rank} took {steps} Euler steps, expected 7: 8 timesteps end in 0, which starts no step"
    assert_fails(schedule_followed(traces, TWO), summary, min(steps, STEPS), (rank, rank), "number of steps")


def followed(**changes: Any) -> Schedule:
    return replace(TWO.schedule, **changes)


def test_a_known_schedule_is_compared_step_by_step() -> None:
    finding = schedule_followed([replace(trace, followed=TWO.schedule) for trace in clean(TWO)], TWO)
    assert finding.summary == "7 Euler steps on every rank, 6 of them guided, at the schedule's times"
    # Each step's time, size and guidance.
    assert finding.compared == Compared(STEPS, 2 + 2 * 3 * STEPS)
    one_of_two = schedule_followed(changed(clean(TWO), 1, followed=TWO.schedule), TWO)
    assert one_of_two.summary == "7 Euler steps on every rank; the sizes of the steps were not seen"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_step_guided_that_should_not_be_and_the_reverse(rank: int) -> None:
    guided = followed(guided=(True,) * STEPS)
    assert_fails(
        schedule_followed(changed(clean(TWO), rank, followed=guided), TWO),
        f"rank {rank} guides step 6 at t = {TWO.schedule.timesteps[6]!r}, which the schedule does not guide: "
        "lo < t <= hi with the interval (0.4, 1.0], compared in float32",
        6,
        (rank, rank),
        "schedule",
    )
    unguided = followed(guided=swapped(TWO.schedule.guided, 5, False))
    assert_fails(
        schedule_followed(changed(clean(TWO), rank, followed=unguided), TWO),
        f"rank {rank} does not guide step 5 at t = {TWO.schedule.timesteps[5]!r}, which the schedule does guide: "
        "lo < t <= hi with the interval (0.4, 1.0], compared in float32",
        5,
        (rank, rank),
        "schedule",
    )


def test_another_time() -> None:
    for t in (0.5, float("nan")):
        other = followed(timesteps=swapped(TWO.schedule.timesteps, 2, t))
        summary = f"rank 1 takes step 2 at t = {t}, expected {TWO.schedule.timesteps[2]!r}"
        assert_fails(schedule_followed(changed(clean(TWO), 1, followed=other), TWO), summary, 2, (1, 1), "schedule")


@pytest.mark.parametrize("step", [0, 3, STEPS - 1])
def test_another_step_size_at_the_same_times(step: int) -> None:
    """The reference follows what a target says: equal on both sides, a wrong size would show in no x_t."""
    due = TWO.schedule.dts[step].item()
    dts = TWO.schedule.dts.clone()
    dts[step] *= 2
    assert_fails(
        schedule_followed(changed(clean(TWO), 1, followed=followed(dts=dts)), TWO),
        f"rank 1 takes step {step} with dt = {2 * due!r} (float32), expected {due!r} (float32)",
        step,
        (1, 1),
        "schedule",
    )


def test_step_sizes_of_another_dtype_or_number() -> None:
    due = TWO.schedule.dts[0].item()
    double = followed(dts=TWO.schedule.dts.double())
    summary = f"rank 0 takes step 0 with dt = {due!r} (float64), expected {due!r} (float32)"
    assert_fails(schedule_followed(changed(clean(TWO), 0, followed=double), TWO), summary, 0, (0, 0), "schedule")
    fewer = followed(dts=TWO.schedule.dts[:-1])
    summary = "rank 0 follows a schedule of 6 step sizes, expected 7"
    assert_fails(schedule_followed(changed(clean(TWO), 0, followed=fewer), TWO), summary, 6, (0, 0), "schedule")


@pytest.mark.parametrize("flags", [0, STEPS - 1, STEPS + 1])
def test_a_schedule_that_does_not_say_of_each_step_whether_it_is_guided(flags: int) -> None:
    other = followed(guided=(*TWO.schedule.guided, True)[:flags])
    summary = f"rank 1 follows a schedule of {flags} guided flags, expected 7"
    step = min(flags, STEPS)
    assert_fails(schedule_followed(changed(clean(TWO), 1, followed=other), TWO), summary, step, (1, 1), "schedule")
    findings = judge(
        TWO, {"local": LoopRun([replace(t, followed=other) for t in clean(TWO)], "local")}, evidence(clean(TWO)[0])
    )
    assert summary.replace("rank 1", "rank 0") in [f.summary for f in findings if f.verdict is Verdict.FAIL]


@pytest.mark.parametrize("num_timesteps", [7, 9])
def test_a_schedule_of_another_length(num_timesteps: int) -> None:
    other = small_request(2, num_timesteps=num_timesteps).schedule
    summary = f"rank 1 follows a schedule of {num_timesteps - 1} steps, expected 7"
    step = min(num_timesteps - 1, STEPS)
    assert_fails(schedule_followed(changed(clean(TWO), 1, followed=other), TWO), summary, step, (1, 1), "schedule")


def test_sizes_that_were_seen_are_compared() -> None:
    sizes = TWO.schedule.dts.tolist()
    assert (
        schedule_followed(clean(TWO), TWO, sizes).summary == "7 Euler steps of the sizes of the schedule on every rank"
    )
    rounded = TWO.schedule.dts.bfloat16().tolist()
    assert schedule_followed(clean(TWO), TWO, rounded).verdict is Verdict.PASS
    sizes[3] *= 1.02
    finding = schedule_followed(clean(TWO), TWO, sizes)
    assert finding.verdict is Verdict.FAIL
    assert finding.summary.startswith("the reference takes step 3 with dt = 0.10984")
