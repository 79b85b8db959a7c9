"""Verdicts merge so that nothing unjudged passes, and a finding cannot pass on nothing."""

from __future__ import annotations

import itertools

import pytest

from verify.errors import BadInput, Unjudged
from verify.verdict import EXIT_BAD_INPUT, EXIT_STATUS, Compared, Divergence, Finding, Verdict, merge

PASS, FAIL, UNKNOWN, EXPLAINED = Verdict.PASS, Verdict.FAIL, Verdict.UNKNOWN, Verdict.EXPLAINED


def test_nothing_at_all_is_unknown() -> None:
    assert merge([]) is UNKNOWN
    assert merge(iter(())) is UNKNOWN


@pytest.mark.parametrize("length", [1, 2, 3])
def test_every_merge(length: int) -> None:
    for verdicts in itertools.product(Verdict, repeat=length):
        merged = merge(iter(verdicts))
        assert (merged is FAIL) == (FAIL in verdicts)
        assert (merged is PASS) == (set(verdicts) == {PASS})
        assert merged in verdicts


def test_what_is_no_verdict_does_not_pass() -> None:
    assert merge([PASS, "skipped"]) is UNKNOWN  # type: ignore[list-item]
    assert merge([FAIL, "skipped"]) is FAIL  # type: ignore[list-item]


def test_what_rounding_explains_never_passes_for_bits() -> None:
    assert merge([PASS, EXPLAINED, PASS]) is EXPLAINED
    assert merge([UNKNOWN, EXPLAINED]) is UNKNOWN
    assert merge([FAIL, EXPLAINED, UNKNOWN]) is FAIL
    assert [verdict for verdict in Verdict if verdict.holds] == [PASS, EXPLAINED]


def test_exit_statuses() -> None:
    assert EXIT_STATUS == {PASS: 0, EXPLAINED: 0, FAIL: 1, UNKNOWN: 3}
    assert EXIT_BAD_INPUT == 2
    assert [str(v) for v in Verdict] == ["pass", "fail", "unknown", "explained by rounding"]


@pytest.mark.parametrize("compared", [Compared(), Compared(49, 0), Compared(0, 0), Compared(1, -1)])
def test_a_finding_does_not_pass_on_nothing(compared: Compared) -> None:
    with pytest.raises(ValueError, match="finite passed without having compared anything"):
        Finding("finite", "local", PASS, "all is well", compared)
    for verdict in (FAIL, UNKNOWN):
        assert Finding("finite", "local", verdict, "so it is", compared).verdict is verdict


def test_a_finding_does_not_pass_beside_a_divergence() -> None:
    with pytest.raises(ValueError, match="finite passed and names a divergence"):
        Finding("finite", "local", PASS, "all is well", Compared(1, 1), Divergence(3, (0, 1), "x_t"))


def test_bad_input_in_one_line() -> None:
    said = str(BadInput.of("--loop", "a\n  b", "a file\nof yours", "name\tone"))
    assert said == r"--loop is 'a\n b', expected a file of yours; name one"
    long = str(BadInput.of("seed", "x" * 500, "an integer", "choose one"))
    assert long == f"seed is '{'x' * 116}..., expected an integer; choose one"


def test_bad_input_that_cannot_be_shown() -> None:
    class Shy:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    assert str(BadInput.of("seed", Shy(), "an integer", "choose one")) == (
        "seed is <Shy that cannot be shown>, expected an integer; choose one"
    )


def test_the_two_endings_are_not_mixed_up() -> None:
    assert not issubclass(BadInput, Unjudged) and not issubclass(Unjudged, BadInput)
