"""collectives and sent_as_computed on what was heard below the group, on traces made by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from traces import ELEMENTS, GUIDED_STEPS, STEPS, changed, clean, small_request, swapped

from verify.bits import first_difference
from verify.checks.collectives import collectives
from verify.checks.parallelism_engaged import parallelism_engaged
from verify.checks.sent_as_computed import sent_as_computed
from verify.expected import Expected, expected_work
from verify.schedule import ALL_GATHER, BROADCAST
from verify.trace.exchange_log import Heard
from verify.trace.exchanges import Exchange
from verify.trace.payloads import Sent
from verify.trace.trace import Collective, Trace
from verify.verdict import Compared, Divergence, Verdict

TWO = small_request(2)
ALL = (0, 1)
X_T = Exchange(BROADCAST, "float32", (4, 3), 4 * ELEMENTS, "0", ALL, src=0)
TOKEN = Exchange("send", "float32", (1,), 4, "0", ALL, dst=1)
BARRIER = Exchange("barrier", "uint8", (1,), 1, "7", ALL)


def due(kind: str = "local") -> Expected:
    return expected_work(kind, TWO.schedule, TWO.branches, 2)


def hearing(traces: list[Trace], rank: int, step: int, *more: Heard) -> list[Trace]:
    """The same traces with more heard on one rank."""
    heard = traces[rank].exchanges
    assert heard is not None
    return changed(traces, rank, exchanges=swapped(heard, step, (*heard[step], *more)))


@pytest.mark.parametrize("expected", [due(), None], ids=["held to local", "held to nothing"])
@pytest.mark.parametrize("rank", [0, 1])
def test_an_exchange_beside_the_group(rank: int, expected: Expected | None) -> None:
    traces = hearing(clean(TWO), rank, 3, Heard(X_T))
    finding = collectives(traces, expected)
    assert finding.verdict is Verdict.FAIL
    assert finding.summary == (
        f"rank {rank} called broadcast of float32 (4, 3) from rank 0 beside the group it was given, in step 3"
    )
    assert finding.first_divergence == Divergence(3, (0, rank), "collectives")
    counts = "1 on rank 0, 0 on rank 1" if rank == 0 else "0 on rank 0, 1 on rank 1"
    assert finding.details[:2] == (
        "it ran over PyTorch's group 0 of ranks 0, 1",
        f"in the whole loop, beside the group: {counts}",
    )


def test_the_earliest_step_is_told() -> None:
    traces = hearing(clean(TWO), 0, 5, Heard(BARRIER))
    traces = hearing(traces, 1, 4, Heard(BARRIER))
    assert collectives(traces, due()).summary == "rank 1 called barrier beside the group it was given, in step 4"
    traces = changed(traces, 0, collectives=swapped(traces[0].collectives, 2, ()))
    assert collectives(traces, due()).summary == "rank 0 called none in step 2, expected all_gather"


def test_what_passed_beside_the_group_explains_what_is_missing_in_the_step() -> None:
    gather = Exchange(ALL_GATHER, "float32", (4, 3), 4 * ELEMENTS, "0", ALL)
    traces = clean(TWO)
    for rank in ALL:
        traces = changed(traces, rank, collectives=swapped(traces[rank].collectives, 2, ()))
        traces = hearing(traces, rank, 2, Heard(gather))
    summary = "rank 0 called all_gather of float32 (4, 3) beside the group it was given, in step 2"
    assert collectives(traces, due()).summary == summary


def test_a_second_exchange_within_a_call() -> None:
    traces = hearing(clean(TWO), 1, 2, Heard(BARRIER, within="all_gather 1 of step 2"))
    summary = "rank 1 called barrier within all_gather 1 of step 2, beside what that stands for, in step 2"
    assert collectives(traces, due()).summary == summary


@pytest.mark.parametrize(
    ("ranks", "verdict"), [((0,), Verdict.PASS), ((0, 4), Verdict.PASS), ((0, 1, 4, 5), Verdict.FAIL)], ids=str
)
def test_an_evaluation_may_exchange_among_shards_of_its_branch(ranks: tuple[int, ...], verdict: Verdict) -> None:
    sharded = Exchange("all_reduce", "float32", (9,), 36, "3", ranks)
    traces = hearing(clean(TWO), 0, 2, Heard(sharded, evaluating="gen"))
    finding = collectives(traces, due())
    assert finding.verdict is verdict
    if verdict is Verdict.FAIL:
        assert finding.details[0] == "it ran over PyTorch's group 3 of ranks 0, 1, 4, 5, while gen was evaluated"
    # The loop itself may not, whomever it reaches.
    assert collectives(hearing(clean(TWO), 0, 2, Heard(sharded)), due()).verdict is Verdict.FAIL


@pytest.mark.parametrize("expected", [due(), None], ids=["held to local", "held to nothing"])
def test_a_warm_up_beside_the_group_or_through_it(expected: Expected | None) -> None:
    small = Exchange(ALL_GATHER, "float32", (1,), 4, "0", ALL)
    traces = clean(TWO)
    for rank in ALL:
        called = traces[rank].collectives
        warm = (Collective(ALL_GATHER, "float32", (1,)), *called[0])
        traces = changed(traces, rank, collectives=swapped(called, 0, warm))
        heard = traces[rank].exchanges
        assert heard is not None
        moved = tuple(h._replace(call=(h.call or 0) + 1) for h in heard[0])
        first = (Heard(small, 1, before_evaluating=True), Heard(BARRIER, before_evaluating=True), *moved)
        traces = changed(traces, rank, exchanges=swapped(heard, 0, first))
    assert collectives(traces, expected).verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("step", "heard"),
    [
        (0, Heard(X_T, before_evaluating=True)),
        (0, Heard(TOKEN, before_evaluating=True)),
        (0, Heard(BARRIER)),
        (1, Heard(BARRIER, before_evaluating=True)),
    ],
    ids=["too large", "point to point", "after an evaluation", "in a later step"],
)
def test_no_warm_up(step: int, heard: Heard) -> None:
    assert collectives(hearing(clean(TWO), 0, step, heard), due()).verdict is Verdict.FAIL


def test_what_was_not_heard_does_not_pass() -> None:
    deaf = changed(clean(TWO), 1, exchanges=None)
    finding = collectives(deaf, due())
    assert (finding.verdict, finding.summary) == (
        Verdict.UNKNOWN,
        "what rank 1 exchanged beside the group was not listened to",
    )
    silent = changed(clean(TWO), 0, unheard=("all_gather 1 of step 0", "all_gather 1 of step 1"))
    finding = collectives(silent, None)
    assert finding.verdict is Verdict.UNKNOWN
    assert finding.summary.startswith("under all_gather 1 of step 0 rank 0 exchanged less through PyTorch")


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64", "uint8"])
def test_x_t_is_broadcast_in_a_format_that_holds_it(dtype: str) -> None:
    called = Collective(BROADCAST, dtype, (4, 12) if dtype == "uint8" else (12,), 0)
    traces = clean(TWO, "broadcast")
    for rank in ALL:
        (first, _), *rest = traces[rank].collectives[1:]
        collective = swapped(traces[rank].collectives, 1, (first, called))
        traces = changed(traces, rank, collectives=collective)
        assert rest
    finding = collectives(traces, due("broadcast"))
    if dtype != "bfloat16":
        assert finding.verdict is Verdict.PASS
        return
    summary = (
        "rank 0 called broadcast of bfloat16 (12,) from rank 0 in step 1, expected x_t, float32 (4, 3), from rank 0"
    )
    assert finding.summary == summary


def test_nothing_was_exchanged_only_where_nothing_was() -> None:
    bare = [replace(t, collectives=((),) * STEPS, exchanges=((),) * STEPS) for t in clean(TWO)]
    said = "the loop never gathered: nothing was exchanged"
    assert parallelism_engaged(bare, TWO, due()).summary == said
    shared = [
        replace(t, collectives=swapped(t.collectives, 0, (Collective(BROADCAST, "float32", (4, 3), 0),))) for t in bare
    ]
    assert parallelism_engaged(shared, TWO, due()).summary == said
    for rank in ALL:
        bare = hearing(bare, rank, 1, Heard(TOKEN))
    assert parallelism_engaged(bare, TWO, due()).verdict is Verdict.PASS


# sent_as_computed.


def test_what_was_sent_is_what_was_computed() -> None:
    finding = sent_as_computed(clean(TWO))
    assert (finding.name, finding.verdict) == ("sent_as_computed", Verdict.PASS)
    assert finding.summary == f"{GUIDED_STEPS} gathers on each rank were given what the network had returned"
    assert finding.compared == Compared(STEPS, 2 * GUIDED_STEPS * ELEMENTS)


@pytest.mark.parametrize("missing", [Sent(), None], ids=["no gather", "not looked at"])
def test_nothing_to_compare(missing: Sent | None) -> None:
    finding = sent_as_computed(changed(clean(TWO), 1, sent=missing))
    assert finding.verdict is Verdict.UNKNOWN
    assert finding.summary == "rank 1 gathered nothing that it had computed"


def test_the_first_that_differs_is_told() -> None:
    x_t = clean(TWO)[0].x_t[0]
    difference = first_difference(x_t, x_t * 2)
    wrong = Sent(6, 72, 2, 4, "text", "float32 (4, 3)", "float32 (4, 3)", difference)
    traces = changed(clean(TWO), 1, sent=wrong)
    finding = sent_as_computed(traces)
    assert finding.verdict is Verdict.FAIL
    assert finding.summary == "rank 1 sent float32 (4, 3) that is not the velocity of text, in step 4"
    assert finding.first_divergence == Divergence(
        4, (1, 1), "velocity of text as sent", ("returned", "sent"), difference
    )
    assert finding.details == ("rank 1 sent something else than it had computed in 2 of 6 gathers",)
    earlier = changed(traces, 0, sent=Sent(6, 72, 6, 0, "gen", "float16 (4, 3)", "float32 (4, 3)"))
    finding = sent_as_computed(earlier)
    summary = "rank 0 sent float16 (4, 3) that is not the velocity of gen, which is float32 (4, 3), in step 0"
    assert finding.summary == summary
    assert len(finding.details) == 2
