"""Whatever would let a wrong loop pass makes the run unknown, with its reason."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from traces import changed, clean, reference, small_request

from verify.checks.not_vacuous import not_vacuous
from verify.trace.sensitivity import Sensitivity
from verify.trace.trace import Trace
from verify.verdict import Finding, Verdict

TWO = small_request(2)
RIGHT = Sensitivity(guided=True)


def found(traces: list[Trace] | None = None, right: Trace | None = None, request: Any = TWO, **tried: Any) -> Finding:
    runs = {"local": clean(TWO) if traces is None else traces}
    return not_vacuous(request, runs, reference(TWO) if right is None else right, replace(RIGHT, **tried))


def test_a_run_that_could_fail_passes() -> None:
    assert found().verdict is Verdict.PASS


def still(trace: Trace, step: int) -> Trace:
    x_t = trace.x_t.clone()
    x_t[step] = x_t[step - 1]
    return replace(trace, x_t=x_t)


@pytest.mark.parametrize(
    ("finding", "said"),
    [
        (lambda: found(right=replace(reference(TWO), alike=((2, "gen", "text"),))), "have the same bytes in step 2"),
        (lambda: found(right=still(reference(TWO), 3)), "step 3 leaves x_t as it was"),
        (lambda: found(changed(clean(TWO), 1, noise="noise of rank 0")), "were given the same initial noise"),
        (lambda: found(request=TWO.resolved(branches=("gen", "gen"))), "two have one name"),
        (lambda: found(unrepeated=("text",)), "the velocity of text differs when it is computed again"),
        (lambda: found(deaf=("gen",)), "the velocity of gen is the same at another x_t"),
        (lambda: found(unread=("gen: keys",)), "a change of the cache gen: keys changes no velocity"),
        (lambda: found(guided=False), "guidance has no effect"),
        (lambda: found(equal_branches=(("gen", "text"),)), "the velocities of gen and text have the same bytes"),
        (lambda: found(failed="KeyError: 'x'"), "could not be tried: KeyError"),
    ],
)
def test_what_makes_a_run_vacuous(finding: Any, said: str) -> None:
    seen = finding()
    assert seen.verdict is Verdict.UNKNOWN
    assert said in seen.summary


def test_branches_that_are_equal_by_design_are_not_held_against_a_run() -> None:
    right = replace(reference(TWO), alike=((2, "gen", "text"),))
    pair = ("text", "gen")
    assert found(right=right, alike=(pair,), equal_branches=(("gen", "text"),)).verdict is Verdict.PASS


def test_equal_branches_do_not_matter_outside_the_interval() -> None:
    assert found(right=replace(reference(TWO), alike=((6, "gen", "text"),))).verdict is Verdict.PASS


def test_without_a_trial_it_is_unknown() -> None:
    assert not_vacuous(TWO, {"local": clean(TWO)}, reference(TWO), None).verdict is Verdict.UNKNOWN
