"""Which collective hung ranks wait in, from how many each has called: also where a host runs ahead of its device."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest

from verify.ranks.failure.awaited import awaited
from verify.ranks.failure.calls import KEPT, SAID, Calls, entry
from verify.ranks.failure.failure import RankFailure
from verify.ranks.failure.report import RankReport, RankState
from verify.ranks.launched.heartbeat_message import in_task, report_on, said_of, status_of
from verify.schedule import ALL_GATHER, BROADCAST
from verify.text import call_text, place_of_call

Call = tuple[str, int, int]
# As the local loop calls them: x_0 once, then a gather in each guided step.
LOCAL: list[Call] = [(BROADCAST, 1, 0), (ALL_GATHER, 2, 0), *((ALL_GATHER, 1, step) for step in range(1, 41))]


def calls(made: Sequence[Call]) -> Calls:
    return Calls(len(made), b"".join(entry(*call) for call in made[-KEPT:]))


def up_to(step: int, made: Sequence[Call] = LOCAL) -> Calls:
    """What a rank has called that is about to leave ``step``."""
    return calls([call for call in made if call[2] <= step])


def hung(rank: int, step: int, activity: str, called: Calls | None, **changes: object) -> RankReport:
    report = RankReport(rank, RankState.HUNG, "did not finish in time", step, activity, "stack", calls=called)
    return replace(report, **changes)  # type: ignore[arg-type]


def finished(rank: int, called: Calls) -> RankReport:
    return RankReport(rank, RankState.FINISHED, "finished its part", 48, "finishing", calls=called)


def said(*reports: RankReport) -> str:
    return str(awaited(reports))


def test_the_name_of_a_call() -> None:
    made = calls(LOCAL)
    assert [made.name(number) for number in (1, 2, 3, 42)] == [
        "broadcast 1 of step 0", "all_gather 2 of step 0", "all_gather 1 of step 1", "all_gather 1 of step 40",
    ]  # fmt: skip
    assert [made.name(number) for number in (-1, 0, 43)] == [""] * 3
    many = calls([(ALL_GATHER, 1, step) for step in range(KEPT + 5)])
    assert [many.name(number) for number in (5, 6)] == ["", "all_gather 1 of step 5"]
    assert call_text(ALL_GATHER, 70_000, 3) == calls([(ALL_GATHER, 70_000, 3)]).name(1)


def test_the_place_of_a_call() -> None:
    assert place_of_call("all_gather 1 of step 40") == (40, 1)
    for other in ("", "finishing", "velocity of gen", "step 5 of the reference, alone"):
        assert place_of_call(other) is None


def test_calls_travel_as_json() -> None:
    made = calls([(ALL_GATHER, 1, step) for step in range(100)])
    word = json.loads(json.dumps(made.said()))
    heard = Calls.heard(word)
    assert heard.count == 100
    assert heard.name(100 - SAID + 1) == f"all_gather 1 of step {100 - SAID}"
    assert heard.name(100 - SAID) == ""
    assert Calls.heard(Calls().said()) == Calls()


# What was measured on two H100s over NCCL, where hosts run ahead of their devices.


def test_a_host_that_has_run_on_from_a_rank_that_returned_early() -> None:
    there, gone = hung(0, 27, "all_gather 1 of step 28", up_to(28)), finished(1, up_to(20))
    failure = RankFailure("early_return", [there, gone], 3.0)
    assert failure.cause == "rank 0 waits in all_gather 1 of step 21, which rank 1 never joined (rank 1 has finished)"
    assert failure.to_dict()["awaited"] == {
        "collective": "all_gather 1 of step 21", "waiting": [0], "missing": [1], "said": failure.cause,
    }  # fmt: skip


@pytest.mark.parametrize("activity", ["all_gather 1 of step 10", "velocity of gen", "", "finishing"])
def test_a_host_that_has_run_on_from_a_rank_that_is_busy(activity: str) -> None:
    there, busy = hung(0, 9, activity, up_to(10)), hung(1, 2, "velocity of text", up_to(2))
    failure = RankFailure("one_rank_compiles", [there, busy], 3.0)
    assert failure.cause == "rank 1 did not finish in time after step 2 in velocity of text"
    told = failure.to_dict()["awaited"]
    assert told["collective"] == "all_gather 1 of step 3"
    # Rank 1's device may be stuck with something that its host called earlier.
    assert told["said"] == "rank 0 waits in or before all_gather 1 of step 3, which rank 1 never joined"


def test_a_rank_that_alone_makes_a_gather_is_blamed_where_it_makes_it() -> None:
    """Its host stands in the velocity of the next step, and its peer has finished."""
    more = [*LOCAL, (ALL_GATHER, 1, 41)]
    failure = RankFailure("bound_rule", [finished(0, calls(LOCAL)), hung(1, 41, "velocity of gen", calls(more))], 3.0)
    assert failure.reports[0].rank == 1
    assert failure.cause == "rank 1 waits in all_gather 1 of step 41, which rank 0 never joined (rank 0 has finished)"


def test_the_busy_rank_is_blamed_before_hosts_that_have_run_on() -> None:
    """Also where all of them stand in a velocity and the busy one is as far by its steps."""
    ahead = [hung(rank, 3, "velocity of gen", up_to(3)) for rank in (0, 2)]
    failure = RankFailure("busy", [*ahead, hung(1, 3, "velocity of text", up_to(2))], 3.0)
    assert failure.reports[0].rank == 1
    assert said(*failure.reports) == "ranks 0 and 2 wait in or before all_gather 1 of step 3, which rank 1 never joined"


def test_ranks_ahead_by_different_counts_wait_in_the_same_collective() -> None:
    reports = [hung(0, 9, "", up_to(9)), finished(1, up_to(4)), hung(2, 6, "", up_to(6)), finished(3, up_to(4))]
    told = "ranks 0 and 2 wait in all_gather 1 of step 5, which ranks 1 and 3 never joined"
    assert said(*reports) == f"{told} (ranks 1 and 3 have finished)"


def test_a_rank_that_died_before_a_collective() -> None:
    died = RankReport(1, RankState.DIED, "exited with status 13", 11, "velocity of text", calls=up_to(11))
    there = replace(hung(0, 14, "velocity of gen", up_to(15)), state=RankState.WAITING)
    assert said(died, there) == "rank 0 waits in or before all_gather 1 of step 12, which rank 1 never joined"
    stands_there = replace(there, step=11, activity="all_gather 1 of step 12", calls=up_to(12))
    assert said(died, stands_there) == "rank 0 waits in all_gather 1 of step 12, which rank 1 never joined"


def test_a_broadcast_may_be_over_for_some_before_all_have_joined() -> None:
    """Its source has only sent; so of a rank that went on it is not known that it still waits there."""
    made = [(BROADCAST, 1, 0), (ALL_GATHER, 2, 0), (BROADCAST, 3, 0), (ALL_GATHER, 1, 1)]
    busy = hung(1, -1, "velocity of text", calls(made[:2]))
    went_on = hung(0, 0, "all_gather 1 of step 1", calls(made))
    assert said(went_on, busy) == "rank 0 waits near broadcast 3 of step 0, which rank 1 never joined"
    still_there = hung(0, -1, "broadcast 3 of step 0", calls(made[:3]))
    assert said(still_there, busy) == "rank 0 waits in broadcast 3 of step 0, which rank 1 never joined"


# What counts do not tell.


def test_equal_counts_in_one_collective_miss_nobody() -> None:
    both = [hung(rank, 2, "all_gather 1 of step 3", up_to(3)) for rank in (0, 1)]
    assert awaited(both) is None
    cause = RankFailure("slow", both, 3.0).cause
    assert cause == "rank 0 did not finish in time after step 2 in all_gather 1 of step 3"


def test_equal_counts_in_different_collectives_are_told_as_the_ranks_stand() -> None:
    before = [call for call in LOCAL if call[2] < 8]
    gathers = hung(0, 7, "all_gather 1 of step 8", calls([*before, (ALL_GATHER, 1, 8)]))
    sends = hung(1, 7, "broadcast 1 of step 8", calls([*before, (BROADCAST, 1, 8)]))
    assert said(gathers, sends) == "rank 0 waits in all_gather 1 of step 8, which rank 1 never joined"


def test_a_rank_that_died_or_went_on_has_joined_what_it_called() -> None:
    there = replace(hung(0, 7, "all_gather 1 of step 8", up_to(8)), state=RankState.WAITING)
    died = RankReport(1, RankState.DIED, "was killed by SIGABRT", 7, "all_gather 1 of step 8", calls=up_to(8))
    assert awaited([there, died]) is None
    assert awaited([there, replace(died, activity="velocity of gen")]) is None
    ahead = replace(died, step=8, activity="all_gather 1 of step 9", calls=up_to(9))
    assert awaited([there, ahead]) is None
    assert awaited([replace(there, calls=Calls()), replace(died, activity="", calls=Calls())]) is not None


@pytest.mark.parametrize("activity", ["all_gather 1 of step 10", "velocity of gen"])
def test_of_a_rank_whose_count_is_not_known_nothing_is_said(activity: str) -> None:
    """It may have called what the others wait in, or all that they did."""
    there = hung(0, 9, activity, up_to(10))
    assert awaited([there, hung(1, 2, "velocity of text", None)]) is None
    assert awaited([replace(there, calls=None), hung(1, 9, "velocity of text", up_to(9))]) is None
    assert awaited([replace(there, calls=None), hung(1, 2, "velocity of text", None)]) is None


def test_a_call_too_long_ago_to_be_kept_is_not_made_up() -> None:
    gone = finished(1, calls([(ALL_GATHER, 1, step) for step in range(4)]))
    for activity in ("velocity of gen", "all_gather 1 of step 1032"):
        far = hung(0, 2000, activity, calls([(ALL_GATHER, 1, step) for step in range(KEPT + 9)]))
        assert awaited([far, gone]) is None


def test_the_first_of_several_collectives_is_told_also_where_it_is_of_step_0() -> None:
    gone = finished(1, calls(LOCAL[:1]))
    first = hung(0, 9, "velocity of gen", calls(LOCAL[:11]))
    other = hung(2, 3, "velocity of gen", calls([LOCAL[0], (ALL_GATHER, 1, 3), (ALL_GATHER, 1, 4)]))
    assert said(first, gone, other).startswith("rank 0 waits in all_gather 2 of step 0, ")
    same_step = hung(2, 3, "velocity of gen", calls([LOCAL[0], (ALL_GATHER, 3, 0)]))
    assert said(same_step, gone, first).startswith("rank 0 waits in all_gather 2 of step 0, ")


def test_a_stopped_rank_is_blamed_for_that() -> None:
    stopped = hung(1, 6, "", up_to(7), what="did not finish in time and is stopped (SIGSTOP)", trace="")
    failure = RankFailure("stopped", [finished(0, up_to(6)), stopped], 3.0)
    assert failure.cause == "rank 1 did not finish in time and is stopped (SIGSTOP) after step 6"


def test_ranks_of_one_replica_do_not_wait_for_those_of_another() -> None:
    first = [hung(0, 2, "all_gather 1 of step 3", up_to(3)), hung(1, 2, "velocity of text", up_to(2))]
    other = [hung(rank, 1, "", up_to(1), replica=1) for rank in (2, 3)]
    assert said(*first, *other) == "rank 0 waits in all_gather 1 of step 3, which rank 1 never joined"
    assert "replica" not in first[0].to_dict() and "calls" not in first[0].to_dict()
    by_activity = [replace(report, calls=Calls()) for report in (*first, *other)]
    assert said(*by_activity) == "rank 0 waits in all_gather 1 of step 3, which rank 1 never joined"


# Launched processes, of which only their words are known.


def test_what_a_process_says_of_its_calls() -> None:
    place = status_of(json.loads(json.dumps(said_of(status_of({"task": "local", "calls": up_to(10).said()})))))
    assert place.calls == up_to(10)
    said = said_of(place)
    assert status_of(in_task(said, "local")).calls == up_to(10)
    assert status_of(in_task(said, "another")).calls == Calls()


def test_a_launched_process_is_placed_by_what_it_last_said() -> None:
    ahead = said_of(status_of({"step": 9, "task": "local", "activity": "velocity of gen", "calls": up_to(10).said()}))
    busy = said_of(status_of({"step": 2, "task": "local", "activity": "velocity of text", "calls": up_to(2).said()}))

    def reports(silence: float | None = None, moving: bool = False) -> list[RankReport]:
        return [
            report_on(0, ahead, "", "stack", None, others_failed=silence is not None, moving=moving),
            report_on(1, busy, "", "stack", silence, others_failed=False),
        ]

    assert said(*reports()) == "rank 0 waits in or before all_gather 1 of step 3, which rank 1 never joined"
    # What a silent process called after its last word nobody knows, nor where one is that goes on.
    assert awaited(reports(silence=6.0)) is None
    assert awaited(reports(moving=True)) is None
