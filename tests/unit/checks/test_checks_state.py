"""cache_frozen, observed, finite and environments_agree on traces made by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from traces import ELEMENTS, STEPS, changed, clean, flip, small_request, swapped

from verify.bits import first_difference
from verify.checks.cache_frozen import cache_frozen
from verify.checks.environments_agree import environments_agree
from verify.checks.finite import finite
from verify.checks.observed import observed
from verify.trace.caches import CacheRecord
from verify.trace.trace import Trace
from verify.verdict import Compared, Divergence, Finding, Verdict

TWO, THREE = small_request(2), small_request(3)
# As the builder lays them out: two layers of each branch.
TEXT_LAYER_1 = 3


NOTHING = Compared()
NAMES = {"cache_frozen", "observed", "finite", "environments_agree"}


def assert_fails(finding: Finding, summary: str, divergence: Divergence, details: tuple[str, ...] = ()) -> None:
    assert (finding.verdict, finding.summary, finding.loop) == (Verdict.FAIL, summary, "local")
    assert finding.name in NAMES
    assert finding.first_divergence == divergence
    assert finding.details == details
    assert finding.compared.steps == STEPS and finding.compared.elements > 0


def assert_unknown(finding: Finding, summary: str, compared: Compared = NOTHING, loop: str = "local") -> None:
    assert (finding.verdict, finding.summary, finding.loop) == (Verdict.UNKNOWN, summary, loop)
    assert finding.name in NAMES
    assert (finding.first_divergence, finding.compared) == (None, compared)


# cache_frozen.


def with_record(traces: list[Trace], rank: int, at: int, **fields: Any) -> list[Trace]:
    caches = traces[rank].caches
    return changed(traces, rank, caches=swapped(caches, at, replace(caches[at], **fields)))


def test_caches_that_nobody_wrote_to() -> None:
    finding = cache_frozen(clean(TWO))
    assert (finding.name, finding.verdict) == ("cache_frozen", Verdict.PASS)
    assert finding.summary == "4 cache tensors equal on every rank, before and after"
    assert finding.compared == Compared(STEPS, 2 * 4 * 24)
    assert cache_frozen(clean(TWO, "round_robin", 1)).verdict is Verdict.PASS


def test_no_caches() -> None:
    none = [replace(trace, caches=()) for trace in clean(TWO)]
    assert_unknown(cache_frozen(none), "no context holds a cache: there was nothing to freeze", Compared(STEPS, 0))
    empty = [replace(trace, caches=(CacheRecord("gen", "keys, layer 0", 0, "a", "a"),)) for trace in none]
    assert_unknown(cache_frozen(empty), "no context holds a cache: there was nothing to freeze", Compared(STEPS, 0))


@pytest.mark.parametrize("rank", [1, 2])
def test_contexts_that_began_differently(rank: int) -> None:
    traces = clean(THREE)
    before = traces[0].caches[TEXT_LAYER_1].before
    traces = with_record(traces, rank, TEXT_LAYER_1, before="other", after="other")
    assert_fails(
        cache_frozen(traces),
        f"rank 0 and rank {rank} began with different bytes in text cache, keys, layer 1",
        Divergence(-1, (0, rank), "text cache, keys, layer 1"),
        (f"SHA-256 {before} on rank 0", f"SHA-256 other on rank {rank}"),
    )


@pytest.mark.parametrize("fields", [{"branch": "img"}, {"tensor": "values, layer 1"}, {"elements": 25}])
def test_contexts_of_another_structure(fields: dict[str, Any]) -> None:
    finding = cache_frozen(with_record(clean(TWO), 1, TEXT_LAYER_1, **fields))
    assert finding.verdict is Verdict.FAIL
    assert finding.first_divergence == Divergence(-1, (0, 1), "text cache, keys, layer 1")


@pytest.mark.parametrize("rank", [0, 1])
def test_contexts_of_another_number(rank: int) -> None:
    traces = clean(TWO)
    traces = changed(traces, rank, caches=traces[rank].caches[:-1])
    counts = (3, 4) if rank == 0 else (4, 3)
    summary = f"rank 0 holds {counts[0]} cache tensors, rank 1 {counts[1]}"
    assert_fails(cache_frozen(traces), summary, Divergence(-1, (0, 1), "caches"))
    none = changed(traces, rank, caches=())
    assert cache_frozen(none).verdict is Verdict.FAIL


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(("written_at", "when"), [(4, "in step 4"), (0, "in step 0"), (None, "during the loop")])
def test_a_write(rank: int, written_at: int | None, when: str) -> None:
    difference = first_difference(torch.zeros(2, 3), torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]))
    traces = with_record(clean(TWO), rank, TEXT_LAYER_1, after="x", written_at=written_at, difference=difference)
    what = "text cache, keys, layer 1"
    assert_fails(
        cache_frozen(traces),
        f"rank {rank} wrote to {what} {when}",
        Divergence(written_at, (rank, rank), what, ("before", "after"), difference),
    )


def test_of_several_writes_the_first_is_told_and_all_are_named() -> None:
    traces = with_record(clean(TWO), 0, 0, after="x", written_at=None)
    traces = with_record(traces, 0, 1, after="y", written_at=5)
    traces = with_record(traces, 1, 2, after="z", written_at=2)
    assert_fails(
        cache_frozen(traces),
        "rank 1 wrote to text cache, keys, layer 0 in step 2",
        Divergence(2, (1, 1), "text cache, keys, layer 0", ("before", "after")),
        ("also written on rank 0: gen cache, keys, layer 0", "also written on rank 0: gen cache, keys, layer 1"),
    )


def test_a_write_in_step_0_comes_before_one_in_step_1() -> None:
    traces = with_record(clean(TWO), 0, 0, after="x", written_at=1)
    traces = with_record(traces, 1, 2, after="y", written_at=0)
    assert cache_frozen(traces).summary == "rank 1 wrote to text cache, keys, layer 0 in step 0"


def test_the_same_write_on_every_rank_is_named_for_every_rank() -> None:
    traces = clean(THREE)
    for rank in range(3):
        traces = with_record(traces, rank, 0, after="x", written_at=4)
    what = "gen cache, keys, layer 0"
    assert_fails(
        cache_frozen(traces),
        f"rank 0 wrote to {what} in step 4",
        Divergence(4, (0, 0), what, ("before", "after")),
        (f"also written on rank 1: {what}", f"also written on rank 2: {what}"),
    )


# observed.


def test_what_was_shown_was_used() -> None:
    finding = observed(clean(TWO))
    assert (finding.name, finding.verdict) == ("observed", Verdict.PASS)
    assert finding.summary == "the x_t observed is the x_t evaluated and returned"
    assert finding.compared == Compared(STEPS, (2 * 7 + 2) * ELEMENTS)
    assert observed(clean(TWO, "round_robin", 1)).verdict is Verdict.PASS


@pytest.mark.parametrize(("rank", "step"), [(0, 0), (1, 3), (1, STEPS - 1)])
def test_another_x_t_evaluated(rank: int, step: int) -> None:
    traces = changed(clean(TWO), rank, foreign=swapped((0,) * STEPS, step, 5))
    assert_fails(
        observed(traces),
        f"rank {rank} evaluated step {step} at an x_t that is not the one observed before it (5 elements differ)",
        Divergence(step, (rank, rank), "x_t evaluated", ("observed", "evaluated")),
    )


def test_the_earliest_foreign_step_is_told_whichever_rank_it_is_on() -> None:
    traces = changed(clean(TWO), 0, foreign=swapped((0,) * STEPS, 4, 1))
    traces = changed(traces, 1, foreign=swapped((0,) * STEPS, 2, 1))
    finding = observed(traces)
    assert finding.first_divergence is not None
    assert (finding.first_divergence.step, finding.first_divergence.ranks) == (2, (1, 1))


@pytest.mark.parametrize("rank", [0, 1])
def test_another_latent_returned(rank: int) -> None:
    traces = clean(TWO)
    flip(traces[rank].final, (1, 2), 31)
    assert_fails(
        observed(traces),
        f"rank {rank} returned another latent than the one observed after step 6",
        Divergence(
            6,
            (rank, rank),
            "the final latent",
            ("observed", "returned"),
            first_difference(traces[rank].x_t[-1], traces[rank].final),
        ),
    )


def test_a_rank_that_showed_nothing() -> None:
    traces = clean(TWO)
    traces = changed(traces, 1, x_t=traces[1].x_t[:0], foreign=(), branches=(), collectives=())
    assert_unknown(observed(traces), "a rank showed no step: there was nothing to compare")


# finite.


def test_all_finite() -> None:
    finding = finite(clean(TWO))
    assert (finding.name, finding.verdict) == ("finite", Verdict.PASS)
    assert finding.summary == "no NaN and no infinity in any x_t"
    assert finding.compared == Compared(STEPS, 2 * STEPS * ELEMENTS)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite(value: float, dtype: torch.dtype) -> None:
    traces = [replace(trace, x_t=trace.x_t.to(dtype)) for trace in clean(TWO)]
    traces[1].x_t[5, 3, 1] = value
    traces[1].x_t[5, 3, 2] = value
    assert_fails(
        finite(traces),
        f"rank 1 holds {value} in x_t[3, 1] after step 5",
        Divergence(5, (1, 1), "x_t"),
        (f"2 of {ELEMENTS} elements are not finite there",),
    )


def test_the_earliest_step_and_then_the_first_rank() -> None:
    traces = clean(THREE)
    for rank, step in [(0, 4), (1, 2), (2, 2)]:
        traces[rank].x_t[step] = math.nan
    finding = finite(traces)
    assert finding.summary == "rank 1 holds nan in x_t[0, 0] after step 2"
    assert finding.details == (f"{ELEMENTS} of {ELEMENTS} elements are not finite there",)


def test_the_greatest_finite_value_is_finite() -> None:
    traces = clean(TWO)
    for trace in traces:
        trace.x_t[0, 0, 0], trace.x_t[0, 0, 1] = torch.finfo(torch.float32).max, torch.finfo(torch.float32).min
    assert finite(traces).verdict is Verdict.PASS


def test_no_x_t_to_look_at() -> None:
    traces = clean(TWO)
    traces = changed(traces, 1, x_t=traces[1].x_t[:0])
    assert_unknown(finite(traces), "a rank showed no x_t: there was nothing to look at")


# environments_agree.


def test_equal_environments() -> None:
    finding = environments_agree(clean(TWO))
    assert (finding.name, finding.verdict) == ("environments_agree", Verdict.PASS)
    assert finding.summary == "2 properties equal on every rank", "host and GPU may differ"
    assert finding.compared == Compared(STEPS, 2)
    assert environments_agree(clean(THREE)).compared == Compared(STEPS, 4), "ranks 1 and 2 with rank 0"


def test_one_environment() -> None:
    finding = environments_agree(clean(TWO, "round_robin", 1))
    assert_unknown(finding, "one rank has nobody to agree with", loop="round_robin")


def test_no_environment() -> None:
    for environment in ({}, {"host": "a"}):
        traces = [replace(trace, environment=environment) for trace in clean(TWO)]
        assert_unknown(environments_agree(traces), "no rank said what it runs on", Compared(STEPS, 0))


@pytest.mark.parametrize("rank", [1, 2])
def test_another_version(rank: int) -> None:
    traces = clean(THREE)
    environment = traces[rank].environment | {"torch": "2.11.0", "threads": 4}
    assert_fails(
        environments_agree(changed(traces, rank, environment=environment)),
        f"rank 0 and rank {rank} differ in torch",
        Divergence(None, (0, rank), "environment, torch"),
        (f"torch: '2.13.0' on rank 0, '2.11.0' on rank {rank}", f"threads: 1 on rank 0, 4 on rank {rank}"),
    )


@pytest.mark.parametrize("rank", [0, 1])
def test_a_property_that_one_rank_lacks(rank: int) -> None:
    traces = clean(TWO)
    environment = {key: value for key, value in traces[rank].environment.items() if key != "torch"}
    finding = environments_agree(changed(traces, rank, environment=environment))
    assert finding.verdict is Verdict.FAIL
    assert finding.first_divergence == Divergence(None, (0, 1), "environment, torch")
    extra = changed(traces, rank, environment=traces[rank].environment | {"flags": {"tf32": True}})
    values = [True if rank == own else None for own in (0, 1)]
    assert environments_agree(extra).details == (f"tf32: {values[0]} on rank 0, {values[1]} on rank 1",)


def test_variables_are_compared_one_by_one() -> None:
    ours = {"NCCL_ALGO": "Ring", "OMP_NUM_THREADS": "1"}
    traces = [replace(t, environment=t.environment | {"variables": ours}) for t in clean(TWO)]
    assert environments_agree(traces).verdict is Verdict.PASS
    theirs = {"NCCL_ALGO": "Tree", "OMP_NUM_THREADS": "1", "NCCL_PROTO": "LL"}
    traces = changed(traces, 1, environment=traces[1].environment | {"variables": theirs})
    assert environments_agree(traces).details == (
        "NCCL_ALGO: 'Ring' on rank 0, 'Tree' on rank 1",
        "NCCL_PROTO: None on rank 0, 'LL' on rank 1",
    )


def test_a_network_that_runs_unasked_is_told() -> None:
    finding = observed(changed(clean(TWO), 1, beside=(0, 0, 2, 0, 0, 0, 0)))
    assert (finding.verdict, finding.summary) == (
        Verdict.FAIL,
        "rank 1 ran the network in step 2 without asking its denoiser, so that what it computed was not seen",
    )


def test_a_velocity_of_another_step_is_told() -> None:
    finding = observed(changed(clean(TWO), 1, asked=((0,), (1,), (2,), (2,), (4,), (5,), (6,))))
    assert finding.summary == "rank 1 asked for the velocity of step 2 in step 3"
