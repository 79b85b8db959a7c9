"""The exact cases that ship are those that rational arithmetic finds, and a replay knows them."""

from __future__ import annotations

import pytest
from exact_cases import generate, solve

from verify.errors import BadInput
from verify.fuzz.case import Case, Values
from verify.fuzz.exact import answer_to, exact_cases


def test_stored_exact_cases_have_the_answers_of_rational_arithmetic() -> None:
    stored = exact_cases()
    assert len(stored) >= 200
    assert len({(exact.case.dtype, exact.case.renorm_type) for exact in stored}) == 12
    for exact in stored:
        assert solve(exact.case) == exact.expected


@pytest.mark.nightly
def test_stored_exact_cases_are_the_generated_ones() -> None:
    assert [case.to_dict() for case in exact_cases()] == [case.to_dict() for case in generate()], (
        "run python -m tests.pages.exact_cases"
    )


def test_a_saved_case_finds_its_answer() -> None:
    exact = exact_cases()[7]
    assert answer_to(Case.from_dict(exact.case.to_dict())) == exact
    with pytest.raises(BadInput, match="none of this version's exact cases"):
        answer_to(Case("float16", 1, 1, (Values(), Values())))
