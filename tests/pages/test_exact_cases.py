"""The exact cases that ship are those that rational arithmetic finds, and a replay knows them."""

from __future__ import annotations

import pytest
from exact_cases import generate

from verify.errors import BadInput
from verify.fuzz.case import Case, Values
from verify.fuzz.exact import answer_to, exact_cases


def test_stored_exact_cases_are_the_generated_ones() -> None:
    stored = exact_cases()
    assert len(stored) >= 200
    assert [case.to_dict() for case in stored] == [case.to_dict() for case in generate()], (
        "run python -m tests.pages.exact_cases"
    )
    kinds = {(exact.case.dtype, exact.case.renorm_type) for exact in stored}
    assert len(kinds) == 12


def test_a_saved_case_finds_its_answer() -> None:
    exact = exact_cases()[7]
    assert answer_to(Case.from_dict(exact.case.to_dict())) == exact
    with pytest.raises(BadInput, match="none of this version's exact cases"):
        answer_to(Case("float16", 1, 1, (Values(), Values())))
