"""Findings on replicas and on windows told as one: the whole finding, as a reader gets it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from verify.checks.merging import over_replicas, over_windows
from verify.verdict import Compared, Divergence, Finding, Verdict


def passed(name: str = "ranks_agree", summary: str = "all agree", steps: int = 3, **data: Any) -> Finding:
    """A pass that looked at 10 elements a step."""
    return Finding(name, "local", Verdict.PASS, summary, Compared(steps, 10 * steps), details=("looked",), data=data)


def failed(
    step: int | None, name: str = "ranks_agree", summary: str = "they differ", steps: int = 3, **data: Any
) -> Finding:
    """A failure that names no replica, as of a check that does not know of them."""
    first = Divergence(step, (0, 1), "x_t")
    compared = Compared(steps, 10 * steps)
    return Finding(name, "local", Verdict.FAIL, summary, compared, first, details=("evidence",), data=data)


def unknown(name: str = "ranks_agree", summary: str = "nothing to judge", steps: int = 0) -> Finding:
    return Finding(name, "local", Verdict.UNKNOWN, summary, Compared(steps, 10 * steps))


# Replicas.


def test_one_replica_is_told_as_it_is_and_named_where_it_broke() -> None:
    held, broke = passed("finite"), failed(2, branches=3)
    assert over_replicas([[held, broke]]) == [
        held,
        replace(broke, first_divergence=Divergence(2, (0, 1), "x_t", replicas=(0, 0))),
    ]


def test_what_holds_in_all_replicas() -> None:
    assert over_replicas([[passed(steps=3, seen=1)], [passed(steps=2)], [passed(steps=4)]]) == [
        Finding(
            "ranks_agree",
            "local",
            Verdict.PASS,
            "all agree, in each of 3 replicas",
            Compared(2, 90),
            details=("looked",),
            data={"seen": 1},
        )
    ]


def test_a_failure_is_told_with_its_replica_and_what_the_others_say() -> None:
    replicas = [[unknown()], [failed(1, summary="late")], [failed(0, summary="early", steps=2, seen=1)], [passed()]]
    assert over_replicas(replicas) == [
        Finding(
            "ranks_agree",
            "local",
            Verdict.FAIL,
            "replica 2: early",
            # An element counts where it was looked at; a step only where every replica looked.
            Compared(0, 80),
            Divergence(0, (0, 1), "x_t", replicas=(2, 2)),
            details=(
                "replica 0: unknown: nothing to judge",
                "replica 1: fail: late",
                "replica 3: pass",
                "evidence",
            ),
            data={"seen": 1, "replica": 2},
        )
    ]


def test_what_is_unknown_in_one_replica_is_unknown() -> None:
    assert over_replicas([[passed()], [unknown(steps=2)]]) == [
        Finding(
            "ranks_agree",
            "local",
            Verdict.UNKNOWN,
            "replica 1: nothing to judge",
            Compared(2, 50),
            details=("replica 0: pass",),
            data={"replica": 1},
        )
    ]


@pytest.mark.parametrize("step", [-1, 0, 1])
def test_a_failure_at_no_step_is_told_before_one_at_a_step(step: int) -> None:
    """Another environment or another shape explains the bits that differ at a step, not the other way round."""
    (merged,) = over_replicas([[failed(step, summary="bits")], [failed(None, summary="shapes")]])
    assert merged.summary == "replica 1: shapes"
    assert merged.details == ("replica 0: fail: bits", "evidence")
    assert merged.first_divergence == Divergence(None, (0, 1), "x_t", replicas=(1, 1))
    (merged,) = over_windows([[failed(step, summary="bits")], [failed(None, summary="shapes")]])
    assert (merged.summary, merged.first_divergence) == ("shapes", Divergence(None, (0, 1), "x_t"))


def test_a_check_that_one_replica_or_window_lacks_is_not_left_out_in_silence() -> None:
    parts = [[passed("finite"), failed(0)], [passed("finite")]]
    with pytest.raises(ValueError, match="shorter"):
        over_replicas(parts)
    with pytest.raises(ValueError, match="shorter"):
        over_windows(parts)


# Windows. ``work`` stands for the checks that see the whole loop in every pass.


def test_a_check_of_the_whole_loop_that_holds_is_told_as_in_the_last_pass() -> None:
    last = passed("collectives", "of the last pass", steps=7, seen=2)
    assert over_windows([[passed("collectives", "of the first pass", steps=6)], [last]]) == [last]


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_check_of_the_whole_loop_that_fails_is_told_as_in_the_pass_where_it_failed(at: int) -> None:
    passes = [[passed("collectives", steps=6)], [passed("collectives", steps=6)], [passed("collectives", steps=7)]]
    passes[at] = [failed(4, "collectives", "in this pass", steps=6, seen=at)]
    assert over_windows(passes) == [replace(passes[at][0], compared=passes[2][0].compared)]


def test_a_window_beyond_the_last_step_says_nothing() -> None:
    told = passed(steps=3, seen=1)
    assert over_windows([[told], [passed(steps=2)], [unknown()]]) == [replace(told, compared=Compared(5, 50))]


def test_a_window_that_could_not_be_judged_makes_the_whole_unknown() -> None:
    unjudged = unknown(steps=2)
    assert over_windows([[passed(steps=3)], [unjudged]]) == [replace(unjudged, compared=Compared(5, 50))]
    assert over_windows([[unknown()], [unknown(summary="nor here")]]) == [unknown()]


def pair(*mismatched: int, ulp: int = 1) -> dict[str, Any]:
    """The evidence on one pair of ranks: elements that differ, and by how much, after each step of a window."""
    return {
        "ranks": [0, 1],
        "mismatched_by_step": list(mismatched),
        "max_ulp_by_step": [ulp if n else 0 for n in mismatched],
    }


def test_the_evidence_of_windows_is_joined_step_by_step() -> None:
    """A window in which every byte agrees brings no pairs: nothing differs after any of its steps."""
    early = failed(4, summary="early", steps=3, pairs=[pair(0, 2, 3), pair(0, 0, 1, ulp=8)], seen=1)
    late = failed(6, summary="late", steps=1, pairs=[pair(5), pair(0)])
    assert over_windows([[passed(steps=2)], [early], [late]]) == [
        replace(
            early,
            compared=Compared(6, 60),
            data={
                "pairs": [pair(0, 0, 0, 2, 3, 5), pair(0, 0, 0, 0, 1, 0, ulp=8)],
                "seen": 1,
            },
        )
    ]
    assert early.data["pairs"] == [pair(0, 2, 3), pair(0, 0, 1, ulp=8)], "what was merged is left as it was"


def test_the_evidence_of_one_replica_is_joined() -> None:
    windows = [[failed(1, pairs=[pair(0, 1)], replica=1)], [failed(2, pairs=[pair(2)], replica=1)], [passed(steps=1)]]
    (merged,) = over_windows(windows)
    assert merged.data == {"pairs": [pair(0, 1, 2, 0)], "replica": 1}


def test_the_evidence_of_different_replicas_is_not_joined() -> None:
    """Each window names the replica that broke first in it: their pairs are of other ranks."""
    windows = [[failed(1, pairs=[pair(0, 1)], replica=1, seen=1)], [failed(2, pairs=[pair(2)], replica=0)]]
    (merged,) = over_windows(windows)
    assert merged.data == {"replica": 1, "seen": 1}
