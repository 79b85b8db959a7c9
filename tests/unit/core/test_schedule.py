"""The schedule and the work that follows from it, each against reasoning in exact fractions."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verify.bits import same_bits
from verify.expected import LOOP_KINDS, Expected, expected_work
from verify.schedule import ALL_GATHER, ALL_REDUCE, BROADCAST, Schedule

BRANCHES = ("gen", "text", "img")
DEFAULT_INTERVAL = (0.4, 1.0)


def exact_points(num_timesteps: int, shift: float) -> list[Fraction]:
    """``s*u / (1 + (s-1)*u)`` for evenly spaced ``u`` from 1 to 0."""
    s, last = Fraction(shift), num_timesteps - 1
    return [s * u / (1 + (s - 1) * u) for u in (Fraction(last - i, last) for i in range(num_timesteps))]


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0, 3.3, 1000.0])
@pytest.mark.parametrize("num_timesteps", [2, 3, 12, 50, 333, 1000])
def test_timesteps_and_step_sizes_are_the_formula_as_float32_rounds_it(num_timesteps: int, shift: float) -> None:
    schedule = Schedule.of(num_timesteps, shift, DEFAULT_INTERVAL)
    exact = exact_points(num_timesteps, shift)
    assert schedule.steps == len(schedule.guided) == len(schedule.dts) == num_timesteps - 1
    # Six operations, each rounded by at most half a unit in the last place.
    for t, expected in zip(schedule.timesteps, exact, strict=False):
        assert abs(Fraction(t) - expected) <= 6 * Fraction(1, 2**24) * expected
    assert schedule.dts.dtype == torch.float32
    assert schedule.dts.shape == (num_timesteps - 1,)
    ends = [*schedule.timesteps[1:], 0.0]
    for t, end, dt in zip(schedule.timesteps, ends, schedule.dts.tolist(), strict=True):
        assert abs(Fraction(dt) - (Fraction(t) - Fraction(end))) <= Fraction(1, 2**24) * Fraction(dt)


def test_two_timesteps_make_one_whole_step() -> None:
    schedule = Schedule.of(2, 3.0, DEFAULT_INTERVAL)
    assert (schedule.timesteps, schedule.dts.tolist(), schedule.guided) == ((1.0,), [1.0], (True,))


def test_evenly_spaced_by_hand() -> None:
    schedule = Schedule.of(5, 1.0, (0.25, 0.75))
    assert schedule.timesteps == (1.0, 0.75, 0.5, 0.25)
    assert schedule.dts.tolist() == [0.25] * 4
    assert schedule.guided == (False, True, True, False), "the lower bound is outside, the upper one inside"


def test_shifted_by_hand() -> None:
    # u = 1, 3/4, 1/2, 1/4 and s = 3: 1, (9/4)/(5/2), (3/2)/2, (3/4)/(3/2).
    schedule = Schedule.of(5, 3.0, DEFAULT_INTERVAL)
    assert torch.tensor(schedule.timesteps).tolist() == torch.tensor([1.0, 0.9, 0.75, 0.5]).tolist()


@pytest.mark.parametrize(
    ("num_timesteps", "guided", "by_the_host"),
    [(12, 9, 10), (23, 18, 19), (34, 27, 28), (45, 36, 37), (100, 81, 82), (50, 41, 41), (56, 45, 45)],
)
def test_guided_steps_as_measured(num_timesteps: int, guided: int, by_the_host: int) -> None:
    """A host that compares floats in float64 counts one step more wherever 0.4 as float32 lies on the bound."""
    schedule = Schedule.of(num_timesteps, 3.0, DEFAULT_INTERVAL)
    assert schedule.guided_steps == guided
    assert sum(0.4 < t <= 1.0 for t in schedule.timesteps) == by_the_host


def test_guided_steps_are_those_of_exact_arithmetic() -> None:
    """With s = 3, t > 2/5 is u > 2/11: of n - 1 steps, all but the last floor(2(n - 1)/11) are guided."""
    for num_timesteps in range(2, 1001):
        steps = num_timesteps - 1
        expected = [True] * (steps - 2 * steps // 11) + [False] * (2 * steps // 11)
        assert list(Schedule.of(num_timesteps, 3.0, DEFAULT_INTERVAL).guided) == expected, num_timesteps


def test_rounding_can_put_the_first_point_above_one() -> None:
    schedule = Schedule.of(50, 0.2, DEFAULT_INTERVAL)
    assert schedule.timesteps[0] == 1.0 + 2.0**-23
    assert schedule.guided[:2] == (False, True)


def test_intervals_that_hold_no_step() -> None:
    assert Schedule.of(50, 3.0, (0.5, 0.5)).guided_steps == 0
    assert Schedule.of(50, 3.0, (0.0, 0.0)).guided_steps == 0
    assert Schedule.of(50, 3.0, (0.0, 1.0)).guided_steps == 49
    assert Schedule.of(50, 3.0, (0.0, 1.0), has_guidance=False).guided == (False,) * 49


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_default_dtype_decides_nothing(dtype: torch.dtype) -> None:
    """Engines set it to that of the weights while they load a model."""
    due = Schedule.of(50, 3.0, DEFAULT_INTERVAL)
    torch.set_default_dtype(dtype)
    try:
        schedule = Schedule.of(50, 3.0, DEFAULT_INTERVAL)
    finally:
        torch.set_default_dtype(torch.float32)
    assert same_bits(schedule.dts, due.dts)
    assert (schedule.timesteps, schedule.guided) == (due.timesteps, due.guided)


def test_to_moves_dts_only() -> None:
    schedule = Schedule.of(5, 3.0, DEFAULT_INTERVAL)
    moved = schedule.to(torch.device("meta"))
    assert moved.dts.device.type == "meta"
    assert (moved.timesteps, moved.guided) == (schedule.timesteps, schedule.guided)


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 1000), st.floats(1e-3, 1e3), st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_whatever_the_request(num_timesteps: int, shift: float, bounds: tuple[float, float]) -> None:
    lo, hi = sorted(bounds)
    schedule = Schedule.of(num_timesteps, shift, (lo, hi))
    times, dts = schedule.timesteps, schedule.dts.double()
    assert all(earlier > later > 0 for earlier, later in pairwise(times))
    assert bool((schedule.dts > 0).all())
    # Each difference is rounded once, by half a unit in the last place of a number below 2 at most.
    assert abs(float(dts.sum()) - times[0]) <= len(times) * 2.0**-24
    lo32, hi32 = torch.tensor([lo, hi], dtype=torch.float32).tolist()
    assert schedule.guided == tuple(lo32 < t <= hi32 for t in times)
    assert schedule.guided_steps == sum(schedule.guided)
    again = Schedule.of(num_timesteps, shift, (lo, hi))
    assert same_bits(again.dts, schedule.dts) and again.timesteps == times and again.guided == schedule.guided


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 1000), st.floats(1.0, 1e3))
def test_step_sizes_sum_to_one(num_timesteps: int, shift: float) -> None:
    """With a shift of 1 or more nothing cancels; below it, 1 + (s - 1) does, the more so the smaller s."""
    total = float(Schedule.of(num_timesteps, shift, DEFAULT_INTERVAL).dts.double().sum())
    assert abs(total - 1.0) <= num_timesteps * 2.0**-24


# What the loops must do.


def four_steps() -> Schedule:
    """Guided, unguided, guided, unguided."""
    return Schedule((1.0, 0.75, 0.5, 0.25), torch.full((4,), 0.25), (True, False, True, False))


def test_the_reference_works_alone() -> None:
    due = expected_work("reference", four_steps(), BRANCHES, 1)
    assert due.collectives == ((), (), (), ())
    assert due.branches == ((BRANCHES, ("gen",), BRANCHES, ("gen",)),)


def test_broadcast_sends_every_step() -> None:
    due = expected_work("broadcast", four_steps(), ("gen", "text"), 2)
    guided, unguided = (ALL_GATHER, BROADCAST), (BROADCAST,)
    assert due.collectives == ((BROADCAST, *guided), unguided, guided, unguided)
    assert due.branches == ((("gen",), ("gen",), ("gen",), ("gen",)), (("text",), (), ("text",), ()))
    assert (due.total(BROADCAST), due.total(ALL_GATHER)) == (5, 2)


def test_local_sends_velocities_only() -> None:
    due = expected_work("local", four_steps(), BRANCHES, 3)
    assert due.collectives == ((BROADCAST, ALL_GATHER), (), (ALL_GATHER,), ())
    assert due.branches == tuple(((branch,), ("gen",), (branch,), ("gen",)) for branch in BRANCHES)
    assert (due.total(BROADCAST), due.total(ALL_GATHER), due.total("barrier")) == (1, 2, 0)


def test_round_robin_deals_the_branches() -> None:
    due = expected_work("round_robin", four_steps(), BRANCHES, 2)
    two = (ALL_GATHER, ALL_GATHER)
    assert due.collectives == ((BROADCAST, *two), (), two, ())
    assert due.branches == ((("gen", "img"), ("gen",)) * 2, (("text",), ("gen",)) * 2)


def test_a_rank_without_a_branch_evaluates_gen() -> None:
    due = expected_work("round_robin", four_steps(), ("gen", "text"), 4)
    assert due.branches[2:] == ((("gen",),) * 4,) * 2
    assert due.total(ALL_GATHER) == 2


def test_the_first_branch_may_have_another_name() -> None:
    due = expected_work("round_robin", four_steps(), ("positive", "negative"), 3)
    assert due.branches == (
        (("positive",),) * 4, (("negative",), ("positive",)) * 2, (("positive",),) * 4,
    )  # fmt: skip


def test_unknown_kinds_and_worlds() -> None:
    with pytest.raises(ValueError, match="no loop version is called 'ring'"):
        expected_work("ring", four_steps(), BRANCHES, 3)
    for kind, ranks in [("local", 2), ("broadcast", 4), ("local", 1)]:
        with pytest.raises(
            ValueError, match=f"{kind} gives each rank one branch: {ranks} ranks cannot take 3 branches"
        ):
            expected_work(kind, four_steps(), BRANCHES, ranks)


def fitting() -> Iterator[tuple[str, int, int]]:
    for kind in LOOP_KINDS:
        for branches in (1, 2, 3):
            for ranks in (1, 2, 3, 4):
                if kind in ("round_robin", "reduce") or ranks == (1 if kind == "reference" else branches):
                    yield kind, branches, ranks


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(list(fitting())), st.lists(st.booleans(), min_size=1, max_size=12))
def test_work_whatever_the_version(version: tuple[str, int, int], guided: list[bool]) -> None:
    kind, count, ranks = version
    branches = BRANCHES[:count]
    schedule = Schedule(tuple(1.0 for _ in guided), torch.ones(len(guided)), tuple(guided))
    due = expected_work(kind, schedule, branches, ranks)
    assert len(due.branches) == ranks
    assert {len(steps) for steps in (due.collectives, *due.branches)} == {len(guided)}
    for step, is_guided in enumerate(guided):
        evaluated = [branch for rank in due.branches for branch in rank[step]]
        if is_guided and ranks <= count:
            assert sorted(evaluated) == sorted(branches), "every branch once"
        elif is_guided:
            assert set(evaluated) == set(branches) and all(len(rank[step]) == 1 for rank in due.branches)
        else:
            assert evaluated == ["gen"] * (1 if kind in ("broadcast", "reference") else ranks)
    check_totals(due, kind, sum(guided), len(guided), -(-count // ranks))


def check_totals(due: Expected, kind: str, guided: int, steps: int, rounds: int) -> None:
    broadcasts = {"reference": 0, "broadcast": 1 + steps, "local": 1, "round_robin": 1, "reduce": 1}
    assert due.total(BROADCAST) == broadcasts[kind]
    assert due.total(ALL_GATHER) == (0 if kind in ("reference", "reduce") else guided * rounds)
    assert due.total(ALL_REDUCE) == (guided if kind == "reduce" else 0)
    assert {name for step in due.collectives for name in step} <= {BROADCAST, ALL_GATHER, ALL_REDUCE}
    assert [name for step in due.collectives for name in step][:1] == ([] if kind == "reference" else [BROADCAST])
