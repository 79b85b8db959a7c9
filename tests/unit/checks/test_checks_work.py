"""collectives and parallelism_engaged on traces made by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from traces import GUIDED_STEPS, STEPS, changed, clean, cut, extended, small_request, swapped

from verify.checks.collectives import collectives
from verify.checks.parallelism_engaged import parallelism_engaged
from verify.expected import Expected, expected_work
from verify.request import DenoiseRequest
from verify.schedule import ALL_GATHER, BROADCAST
from verify.trace.trace import Collective
from verify.verdict import Compared, Divergence, Finding, Verdict

TWO, THREE = small_request(2), small_request(3)
GATHER, SEND = Collective(ALL_GATHER, "float32", (4, 3)), Collective(BROADCAST, "float32", (4, 3), 0)


def due(kind: str, request: DenoiseRequest = TWO, ranks: int | None = None) -> Expected:
    return expected_work(kind, request.schedule, request.branches, len(request.branches) if ranks is None else ranks)


NAMES = {"collectives", "parallelism_engaged"}


def assert_fails(
    finding: Finding, summary: str, step: int | None, ranks: tuple[int, int], tensor: str, loop: str = "local"
) -> None:
    assert (finding.verdict, finding.summary, finding.loop) == (Verdict.FAIL, summary, loop)
    assert finding.name in NAMES
    assert finding.first_divergence == Divergence(step, ranks, tensor)
    assert finding.compared.steps >= STEPS and finding.compared.elements > 0


def assert_unknown(finding: Finding, summary: str, compared: Compared, loop: str = "local") -> None:
    assert (finding.verdict, finding.summary, finding.loop) == (Verdict.UNKNOWN, summary, loop)
    assert finding.name in NAMES
    assert (finding.first_divergence, finding.compared) == (None, compared)


# collectives.


@pytest.mark.parametrize(
    ("kind", "counts"),
    [
        ("broadcast", "6 all_gather, 8 broadcast"),
        ("local", "6 all_gather, 1 broadcast"),
        ("round_robin", "6 all_gather, 1 broadcast"),
    ],
)
def test_collectives_as_due(kind: str, counts: str) -> None:
    traces = clean(TWO, kind)
    finding = collectives(traces, due(kind))
    assert (finding.name, finding.verdict) == ("collectives", Verdict.PASS)
    assert finding.summary == f"{counts} on each rank, as computed from the schedule"
    assert finding.compared == Compared(STEPS, 2 * sum(map(len, traces[0].collectives)))
    assert collectives(traces, None).summary == f"{counts} on each rank, alike on every rank"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_collective_left_out(rank: int) -> None:
    traces = clean(TWO)
    traces = changed(traces, rank, collectives=swapped(traces[rank].collectives, 3, ()))
    finding = collectives(traces, due("local"))
    assert_fails(
        finding, f"rank {rank} called none in step 3, expected all_gather", 3, (0, rank), "collectives"
    )  # fmt: skip
    counts = "5 on rank 0, 6 on rank 1" if rank == 0 else "6 on rank 0, 5 on rank 1"
    assert finding.details == (
        f"in the whole loop, all_gather: {counts}, expected 6",
        "in the whole loop, broadcast: 1 on rank 0, 1 on rank 1, expected 1",
    )


def test_a_collective_too_many() -> None:
    traces = clean(TWO)
    traces = changed(traces, 1, collectives=swapped(traces[1].collectives, 6, (SEND,)))
    summary = "rank 1 called broadcast in step 6, expected none"
    assert_fails(collectives(traces, due("local")), summary, 6, (0, 1), "collectives")


def test_collectives_in_another_order() -> None:
    traces = [replace(t, collectives=swapped(t.collectives, 2, (SEND, GATHER))) for t in clean(TWO, "broadcast")]
    summary = "rank 0 called broadcast, all_gather in step 2, expected all_gather, broadcast"
    assert_fails(collectives(traces, due("broadcast")), summary, 2, (0, 0), "collectives", "broadcast")


def test_a_version_is_not_held_to_another() -> None:
    summary = "rank 0 called broadcast, all_gather, broadcast in step 0, expected broadcast, all_gather"
    finding = collectives(clean(TWO, "broadcast"), due("local"))
    assert_fails(finding, summary, 0, (0, 0), "collectives", "broadcast")


@pytest.mark.parametrize(
    "other",
    [GATHER._replace(dtype="bfloat16"), GATHER._replace(shape=(4, 4)), SEND, None],
    ids=["dtype", "shape", "another", "none"],
)
def test_ranks_that_differ_are_found_without_a_schedule_too(other: Collective | None) -> None:
    traces = clean(TWO)
    called = () if other is None else (other,)
    traces = changed(traces, 1, collectives=swapped(traces[1].collectives, 4, called))
    summary = f"in step 4 rank 0 called all_gather of float32 (4, 3) where rank 1 called {other or 'nothing'}"
    assert_fails(collectives(traces, None), summary, 4, (0, 1), "collectives")


def test_the_same_names_with_other_tensors() -> None:
    traces = clean(TWO, "broadcast")
    traces = changed(traces, 1, collectives=swapped(traces[1].collectives, 2, (GATHER, SEND._replace(src=1))))
    summary = (
        "rank 1 called broadcast of float32 (4, 3) from rank 1 in step 2, expected x_t, float32 (4, 3), from rank 0"
    )
    finding = collectives(traces, due("broadcast"))
    assert_fails(finding, summary, 2, (0, 1), "collectives", "broadcast")
    assert finding.details == (
        "in the whole loop, all_gather: 6 on rank 0, 6 on rank 1, expected 6",
        "in the whole loop, broadcast: 8 on rank 0, 8 on rank 1, expected 8",
    )


@pytest.mark.parametrize("shorter", [0, 1])
def test_steps_that_only_one_rank_took(shorter: int) -> None:
    traces = clean(TWO)
    # The last step is unguided and sends nothing: leaving it out is no finding of this check.
    traces[shorter] = cut(traces[shorter], STEPS - 1)
    for expected in (due("local"), None):
        assert collectives(traces, expected).verdict is Verdict.PASS
    traces[shorter] = cut(traces[shorter], STEPS - 2)
    assert_fails(
        collectives(traces, due("local")),
        f"rank {shorter} called none in step 5, expected all_gather", 5, (0, shorter), "collectives",
    )  # fmt: skip
    one, other = ("nothing", GATHER) if shorter == 0 else (GATHER, "nothing")
    summary = f"in step 5 rank 0 called {one} where rank 1 called {other}"
    assert_fails(collectives(traces, None), summary, 5, (0, 1), "collectives")


def test_a_collective_after_the_last_step_that_is_due() -> None:
    traces = [extended(trace, [GATHER]) for trace in clean(TWO)]
    summary = "rank 0 called all_gather in step 7, expected none"
    assert_fails(collectives(traces, due("local")), summary, 7, (0, 0), "collectives")


def test_the_third_rank_is_looked_at() -> None:
    traces = clean(THREE)
    traces = changed(traces, 2, collectives=swapped(traces[2].collectives, 1, (GATHER, GATHER)))
    summary = "rank 2 called all_gather, all_gather in step 1, expected all_gather"
    assert_fails(collectives(traces, due("local", THREE)), summary, 1, (0, 2), "collectives")
    summary = "in step 1 rank 0 called nothing where rank 2 called all_gather of float32 (4, 3)"
    assert_fails(collectives(traces, None), summary, 1, (0, 2), "collectives")


def test_no_collective_at_all() -> None:
    traces = [replace(trace, collectives=((),) * STEPS) for trace in clean(TWO)]
    assert_unknown(collectives(traces, None), "no collective was called: nothing ran in parallel", Compared(STEPS, 0))
    # What nobody called is counted too, because it was due.
    assert collectives(traces, due("local")).details == (
        "in the whole loop, all_gather: 0 on rank 0, 0 on rank 1, expected 6",
        "in the whole loop, broadcast: 0 on rank 0, 0 on rank 1, expected 1",
    )


def test_a_collective_that_no_version_calls_for() -> None:
    barrier = Collective("barrier", "float32", ())
    traces = clean(TWO)
    traces = changed(traces, 1, collectives=swapped(traces[1].collectives, 6, (barrier,)))
    summary = "rank 1 called barrier in step 6, expected none"
    finding = collectives(traces, due("local"))
    assert_fails(finding, summary, 6, (0, 1), "collectives")
    assert finding.details[1] == "in the whole loop, barrier: 0 on rank 0, 1 on rank 1, expected 0"
    assert collectives(traces, None).details == (
        "in the whole loop, all_gather: 6 on rank 0, 6 on rank 1",
        "in the whole loop, barrier: 0 on rank 0, 1 on rank 1",
        "in the whole loop, broadcast: 1 on rank 0, 1 on rank 1",
    )


def test_one_rank_is_compared_with_the_schedule_or_with_nothing() -> None:
    traces = clean(TWO, "round_robin", 1)
    assert collectives(traces, due("round_robin", ranks=1)).verdict is Verdict.PASS
    assert_unknown(collectives(traces, None), "one rank has nobody to agree with", Compared(STEPS, 13), "round_robin")


# parallelism_engaged.


@pytest.mark.parametrize("kind", ["broadcast", "local", "round_robin"])
@pytest.mark.parametrize("request_", [TWO, THREE], ids=["two", "three"])
def test_branches_as_due(kind: str, request_: DenoiseRequest) -> None:
    traces = clean(request_, kind)
    finding = parallelism_engaged(traces, request_, due(kind, request_))
    assert (finding.name, finding.verdict) == ("parallelism_engaged", Verdict.PASS)
    assert finding.summary == f"each rank evaluated its own branch, and only that, at {GUIDED_STEPS} guided steps"
    assert finding.compared == Compared(STEPS, sum(len(step) for trace in traces for step in trace.branches))
    free = parallelism_engaged(traces, request_, None)
    assert (free.verdict, free.summary) == (Verdict.PASS, "no rank evaluated every branch at 6 guided steps")


def test_one_rank_runs_nothing_in_parallel() -> None:
    finding = parallelism_engaged(clean(TWO, "round_robin", 1), TWO, due("round_robin", ranks=1))
    assert_unknown(finding, "one rank runs nothing in parallel", Compared(STEPS, 13), "round_robin")


def test_no_guided_step() -> None:
    request = small_request(2, cfg_interval=(0.0, 0.0))
    finding = parallelism_engaged(clean(request), request, due("local", request))
    assert_unknown(finding, "no step is guided: there was nothing to run in parallel", Compared(STEPS, 2 * STEPS))


def test_never_gathered() -> None:
    traces = [replace(trace, collectives=((),) * STEPS) for trace in clean(TWO)]
    for expected in (due("local"), None):
        finding = parallelism_engaged(traces, TWO, expected)
        assert_unknown(finding, "the loop never gathered: nothing was exchanged", Compared(STEPS, 2 * STEPS))


@pytest.mark.parametrize(
    ("rank", "step", "evaluated", "summary"),
    [
        (0, 2, ("gen", "text"), "rank 0 evaluated gen, text, expected gen in step 2 (guided)"),
        (1, 0, ("gen",), "rank 1 evaluated gen, expected text in step 0 (guided)"),
        (1, 5, (), "rank 1 evaluated nothing, expected text in step 5 (guided)"),
        (1, 3, ("text", "text"), "rank 1 evaluated text, text, expected text in step 3 (guided)"),
        (1, 6, (), "rank 1 evaluated nothing, expected gen in step 6 (unguided)"),
        (0, 6, ("gen", "text"), "rank 0 evaluated gen, text, expected gen in step 6 (unguided)"),
    ],
)
def test_another_branch_than_due(rank: int, step: int, evaluated: tuple[str, ...], summary: str) -> None:
    traces = clean(TWO)
    traces = changed(traces, rank, branches=swapped(traces[rank].branches, step, evaluated))
    finding = parallelism_engaged(traces, TWO, due("local"))
    assert_fails(finding, summary, step, (0, rank), "branch evaluations")


def test_the_earliest_step_is_told_whichever_rank_it_is_on() -> None:
    traces = clean(TWO)
    traces = changed(traces, 0, branches=swapped(traces[0].branches, 4, ()))
    traces = changed(traces, 1, branches=swapped(traces[1].branches, 2, ()))
    finding = parallelism_engaged(traces, TWO, due("local"))
    assert finding.first_divergence == Divergence(2, (0, 1), "branch evaluations")


def test_a_rank_that_stopped_early_evaluated_nothing() -> None:
    traces = clean(TWO)
    traces[1] = cut(traces[1], 4)
    summary = "rank 1 evaluated nothing, expected text in step 4 (guided)"
    assert_fails(parallelism_engaged(traces, TWO, due("local")), summary, 4, (0, 1), "branch evaluations")


def test_held_to_nothing_a_rank_may_still_not_do_it_all() -> None:
    traces = clean(TWO)
    traces = changed(traces, 1, branches=swapped(traces[1].branches, 2, ("text", "gen")))
    finding = parallelism_engaged(traces, TWO, None)
    assert_fails(
        finding, "rank 1 evaluated every branch for itself in step 2 (guided)", 2, (0, 1), "branch evaluations"
    )
    # Outside the interval there is one branch only, and every rank may evaluate it.
    traces = changed(clean(TWO), 1, branches=swapped(clean(TWO)[1].branches, 6, ("gen", "gen")))
    assert parallelism_engaged(traces, TWO, None).verdict is Verdict.PASS


def test_held_to_nothing_every_branch_is_evaluated_somewhere() -> None:
    traces = clean(THREE)
    traces = changed(traces, 1, branches=swapped(traces[1].branches, 4, ("gen",)))
    finding = parallelism_engaged(traces, THREE, None)
    assert_fails(finding, "no rank evaluated text in step 4 (guided)", 4, (0, 0), "branch evaluations")
    traces = [replace(trace, branches=(("gen",),) * STEPS) for trace in traces]
    assert parallelism_engaged(traces, THREE, None).summary == "no rank evaluated img, text in step 0 (guided)"
    dealt = clean(THREE, "round_robin", 2)
    assert parallelism_engaged(dealt, THREE, None).verdict is Verdict.PASS
