"""What a loop did to the state under it is told with its rank, part and step."""

from __future__ import annotations

from dataclasses import replace

from traces import changed, clean, small_request

from verify.checks.state_frozen import state_frozen
from verify.trace.state import Change, StateRecord
from verify.trace.trace import Trace
from verify.verdict import Finding, Verdict

TWO = small_request(2)
WEIGHTS = {"weights": "w", "contexts": "c", "hooks": "h"}


def found(*changes: Change, ranks: tuple[int, ...] = (1,)) -> Finding:
    traces: list[Trace] = clean(TWO)
    for rank in ranks:
        traces = changed(traces, rank, state=StateRecord(WEIGHTS, changes, 100))
    return state_frozen(traces)


def test_state_left_alone_passes() -> None:
    finding = state_frozen(clean(TWO))
    assert (finding.verdict, finding.compared.elements) == (Verdict.PASS, 200)


def test_a_change_names_rank_part_and_step() -> None:
    finding = found(Change("weights", "layers.1.weight", 3, True))
    assert finding.verdict is Verdict.FAIL
    assert finding.summary == "rank 1 changed its weights in step 3: layers.1.weight"
    assert finding.first_divergence is not None
    assert (finding.first_divergence.step, finding.first_divergence.ranks) == (3, (1, 1))


def test_a_change_that_was_put_right_fails_too() -> None:
    finding = found(Change("weights", "layers.1.weight", 2, False))
    assert finding.summary == "rank 1 changed its weights in step 2: layers.1.weight, and put them right before the end"


def test_a_change_on_every_rank_is_not_blamed_on_one() -> None:
    finding = found(Change("functions", "torch.cat", None, True), ranks=(0, 1))
    assert finding.summary == "every rank changed its functions during the loop: torch.cat"


def test_a_hook_that_is_left_is_told_and_fails_nothing() -> None:
    finding = found(Change("hooks", "layers.0", None, True), ranks=(0, 1))
    assert finding.verdict is Verdict.PASS
    assert finding.details == tuple(f"rank {r} changed its hooks during the loop: layers.0" for r in (0, 1))


def test_the_earliest_change_comes_first() -> None:
    finding = found(Change("hooks", "a", None, True), Change("weights", "b", 4, True))
    assert finding.summary == "rank 1 changed its weights in step 4: b"
    assert finding.details == ("also: rank 1 changed its hooks during the loop: a",)


def test_state_that_was_spoilt_before_is_unknown() -> None:
    finding = state_frozen(changed(clean(TWO), 0, state=StateRecord(WEIGHTS, (), 100, ("weights",))))
    assert (finding.verdict, finding.summary) == (
        Verdict.UNKNOWN,
        "rank 0 began with other weights than the first loop in its process did",
    )


def test_ranks_with_other_weights_fail() -> None:
    finding = state_frozen(changed(clean(TWO), 1, state=StateRecord({**WEIGHTS, "weights": "v"}, (), 100)))
    assert (finding.verdict, finding.summary) == (Verdict.FAIL, "rank 0 and rank 1 hold different weights")


def test_nothing_watched_is_unknown() -> None:
    assert state_frozen([replace(trace, state=None) for trace in clean(TWO)]).verdict is Verdict.UNKNOWN
