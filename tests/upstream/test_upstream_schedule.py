"""How many steps upstream takes and guides, for step counts with and without a step on the interval's bound."""

from __future__ import annotations

import upstream_tasks
from expected import Facts

from verify.ranks.plan import place
from verify.request import DenoiseRequest
from verify.runner.run import pool_for
from verify.schedule import Schedule

ON_THE_BOUND = (12, 23, 34, 45, 67, 78, 89, 100)
COUNTS = (10, *ON_THE_BOUND, 50, 56)


def due(num_timesteps: int, facts: Facts) -> tuple[tuple[float, ...], tuple[bool, ...]]:
    """Times and guided steps: the suite's points, one more where the version has it, and the version's own rule."""
    schedule = Schedule.of(num_timesteps + facts.extra_points, 3.0, (0.4, 1.0))
    if facts.bound_in_float32:
        return schedule.timesteps, schedule.guided
    return schedule.timesteps, tuple(0.4 < t <= 1.0 for t in schedule.timesteps)


def test_steps_and_guided_steps(facts: Facts) -> None:
    pool = pool_for(place(2, "cpu").spec)
    requests = [DenoiseRequest(num_timesteps=count) for count in COUNTS]
    for found in pool.run(upstream_tasks.schedules, requests, timeout=300.0):
        assert [(s.timesteps, s.guided) for s in found] == [due(count, facts) for count in COUNTS]


def test_the_rules_differ_at_these_counts_and_only_there() -> None:
    """The suite's rule against the host float's, without the extra point."""
    counts = range(2, 101)
    differing = [count for count in counts if due(count, Facts(0, True, "")) != due(count, Facts(0, False, ""))]
    assert tuple(differing) == ON_THE_BOUND
