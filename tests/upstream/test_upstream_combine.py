"""Upstream's combine and the suite's are the same function, bit for bit, on whatever the fuzzer draws."""

from __future__ import annotations

import upstream_tasks
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from verify.fuzz.case import Case
from verify.fuzz.strategies import cases
from verify.ranks.plan import place
from verify.runner.run import pool_for

BATCH = 64


def drawn(count: int) -> list[Case]:
    """Cases by the fuzzer's own strategy, equal in every run."""
    kept: list[Case] = []

    @seed(0)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def draw(data: st.DataObject) -> None:
        kept.append(data.draw(cases()))

    draw()
    return kept


def test_equal_on_the_fuzzers_cases() -> None:
    pool, all_cases = pool_for(place(2, "cpu").spec), drawn(1024)
    assert len({case.dtype for case in all_cases}) == 4
    different: list[tuple[bool, Case]] = []
    for autocast in (False, True):
        for start in range(0, len(all_cases), BATCH):
            batch = all_cases[start : start + BATCH]
            found = pool.run(upstream_tasks.combine_differences, batch, autocast, timeout=300.0)
            different += [(autocast, batch[number]) for number in found[0]]
            assert found[0] == found[1]
    assert different == []
