"""ranks_agree, matches_reference and loops_agree on traces made by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from traces import ELEMENTS, SHAPE, STEPS, changed, clean, flip, reference, small_request

from verify.checks.loops_agree import loops_agree
from verify.checks.matches_reference import matches_reference
from verify.checks.ranks_agree import ranks_agree
from verify.trace.trace import Trace
from verify.verdict import Compared, Divergence, Finding, Verdict

TWO, THREE = small_request(2), small_request(3)
# x_t after each step, the start and the final latent.
TENSORS = STEPS + 2


def first_of(finding: Finding) -> Divergence:
    assert finding.verdict is Verdict.FAIL
    assert finding.first_divergence is not None
    return finding.first_divergence


def test_equal_ranks_agree() -> None:
    finding = ranks_agree(clean(TWO))
    assert (finding.name, finding.loop, finding.verdict) == ("ranks_agree", "local", Verdict.PASS)
    assert finding.summary == "2 ranks hold the same bytes after every step"
    assert finding.compared == Compared(STEPS, TENSORS * ELEMENTS)
    assert ranks_agree(clean(THREE)).compared == Compared(STEPS, 3 * TENSORS * ELEMENTS), "every two of three"


def test_one_rank_has_nobody_to_agree_with() -> None:
    finding = ranks_agree(clean(TWO, "round_robin", 1))
    assert finding.verdict is Verdict.UNKNOWN
    assert finding.summary == "one rank has nobody to agree with; run with a world size of 2 or more"
    assert finding.compared == Compared()


def test_no_step_is_nothing_to_compare() -> None:
    traces = [replace(trace, x_t=trace.x_t[:0]) for trace in clean(TWO)]
    finding = ranks_agree(traces)
    assert (finding.name, finding.loop, finding.verdict) == ("ranks_agree", "local", Verdict.UNKNOWN)
    assert finding.summary == "no step was observed: there was nothing to compare"
    # The start and the final latent, which agree, are no steps.
    assert finding.compared == Compared(0, 2 * ELEMENTS)


@pytest.mark.parametrize("step", [0, 3, STEPS - 1])
@pytest.mark.parametrize("bit", [0, 22, 31])
def test_one_bit_after_a_step(step: int, bit: int) -> None:
    traces = clean(TWO)
    flip(traces[1].x_t, (step, 2, 1), bit)
    finding = ranks_agree(traces)
    first = first_of(finding)
    assert finding.summary == f"rank 0 of local and rank 1 of local differ in x_t after step {step}"
    assert (first.step, first.ranks, first.tensor, first.sides) == (step, (0, 1), "x_t", None)
    assert first.difference is not None
    assert (first.difference.index, first.difference.mismatched, first.difference.of) == ((2, 1), 1, ELEMENTS)
    a, b = (int(bits, 16) for bits in first.difference.bits)
    assert a ^ b == 1 << bit
    (pair,) = finding.data["pairs"]
    assert pair["ranks"] == [0, 1]
    assert (pair["sides"], pair["of"]) == (["rank 0 of local", "rank 1 of local"], ELEMENTS)
    assert pair["mismatched_by_step"] == [int(at == step) for at in range(STEPS)]
    assert pair["max_ulp_by_step"] == [first.difference.ulp if at == step else 0 for at in range(STEPS)]
    # One of three channels of token 2: 3 ninths.
    assert finding.data["map"]["tokens"] == "..3."


def test_the_first_step_is_told() -> None:
    traces = clean(TWO)
    for step, index in [(5, (0, 0)), (2, (3, 2)), (2, (1, 0)), (6, (0, 0))]:
        flip(traces[1].x_t, (step, *index))
    finding = ranks_agree(traces)
    first = first_of(finding)
    assert first.difference is not None
    assert (first.step, first.difference.index, first.difference.mismatched) == (2, (1, 0), 2)
    assert finding.data["pairs"][0]["mismatched_by_step"] == [0, 0, 2, 0, 0, 1, 1]


def test_the_start_comes_before_step_0() -> None:
    traces = clean(TWO)
    assert traces[1].start is not None
    flip(traces[1].start, (0, 2))
    flip(traces[1].x_t, (0, 0, 0))
    finding = ranks_agree(traces)
    first = first_of(finding)
    assert finding.summary == "rank 0 of local and rank 1 of local differ in x_t before step 0"
    assert first.difference is not None
    assert (first.step, first.difference.index) == (-1, (0, 2))


def test_a_rank_without_a_start_is_compared_after_the_steps() -> None:
    traces = changed(clean(TWO), 1, start=None)
    finding = ranks_agree(traces)
    assert finding.verdict is Verdict.PASS
    assert finding.compared == Compared(STEPS, (TENSORS - 1) * ELEMENTS)
    assert ranks_agree([replace(trace, start=None) for trace in traces]).verdict is Verdict.PASS


def test_the_final_latent_counts_too() -> None:
    traces = clean(TWO)
    flip(traces[0].final, (3, 0))
    finding = ranks_agree(traces)
    first = first_of(finding)
    assert finding.summary == f"rank 0 of local and rank 1 of local differ in the final latent after step {STEPS - 1}"
    assert first.difference is not None
    assert (first.step, first.tensor, first.difference.index) == (STEPS - 1, "the final latent", (3, 0))


def test_structure_is_told_before_values() -> None:
    traces = clean(TWO)
    half = changed(traces, 1, x_t=traces[1].x_t.half())
    finding = ranks_agree(half)
    first = first_of(finding)
    assert (first.step, first.difference) == (0, None)
    assert first.tensor == f"x_t: float32 {SHAPE} and float16 {SHAPE}"
    assert finding.data["pairs"][0]["mismatched_by_step"] == [ELEMENTS] * STEPS
    shorter = changed(traces, 1, start=traces[1].start[:2])  # type: ignore[index]
    assert first_of(ranks_agree(shorter)).tensor == f"x_t: float32 {SHAPE} and float32 (2, 3)"
    final = changed(traces, 1, final=traces[1].final.double())
    assert first_of(ranks_agree(final)).tensor == f"the final latent: float32 {SHAPE} and float64 {SHAPE}"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_stopped_early(rank: int) -> None:
    traces = clean(TWO)
    finding = ranks_agree(changed(traces, rank, x_t=traces[rank].x_t[:5], final=traces[rank].x_t[4]))
    first = first_of(finding)
    counts = (5, STEPS) if rank == 0 else (STEPS, 5)
    assert (first.step, first.ranks, first.difference) == (5, (0, 1), None)
    assert first.tensor == f"number of steps: {counts[0]} and {counts[1]}"
    assert finding.compared.steps == 5


@pytest.mark.parametrize("odd", [0, 1, 2])
def test_of_three_ranks_the_two_that_agree_are_named(odd: int) -> None:
    traces = clean(THREE)
    flip(traces[odd].x_t, (4, 0, 0))
    finding = ranks_agree(traces)
    assert odd in first_of(finding).ranks
    one, other = (rank for rank in range(3) if rank != odd)
    assert finding.details[-1] == f"rank {one} of local and rank {other} of local agree in every byte"
    assert len(finding.details) == 2
    assert f"rank {odd} of local" in finding.details[0] and finding.details[0].endswith("differ in x_t after step 4")
    assert f"rank {odd} of local" not in finding.details[1]


def test_of_three_different_ranks_the_earliest_pair_is_told() -> None:
    traces = clean(THREE)
    flip(traces[1].x_t, (5, 0, 0))
    flip(traces[2].x_t, (3, 0, 0))
    finding = ranks_agree(traces)
    assert (first_of(finding).step, first_of(finding).ranks) == (3, (0, 2))
    assert finding.details == (
        "rank 0 of local and rank 1 of local differ in x_t after step 5",
        "rank 1 of local and rank 2 of local differ in x_t after step 3",
    )


# matches_reference.


def test_ranks_match_the_reference() -> None:
    finding = matches_reference(clean(TWO), reference(TWO))
    assert (finding.name, finding.loop, finding.verdict) == ("matches_reference", "local", Verdict.PASS)
    assert finding.summary == "every rank holds the bytes of the single-process reference after every step"
    assert finding.compared == Compared(STEPS, 2 * TENSORS * ELEMENTS)


def test_without_a_reference() -> None:
    finding = matches_reference(clean(TWO), None)
    assert (finding.verdict, finding.summary) == (Verdict.UNKNOWN, "there is no reference to compare with")


def test_one_rank_matches_or_does_not() -> None:
    traces = clean(TWO, "round_robin", 1)
    assert matches_reference(traces, reference(TWO)).verdict is Verdict.PASS
    flip(traces[0].x_t, (0, 0, 0))
    assert matches_reference(traces, reference(TWO)).verdict is Verdict.FAIL


def test_the_rank_that_left_the_reference() -> None:
    traces = clean(TWO)
    flip(traces[1].x_t, (3, 1, 1))
    finding = matches_reference(traces, reference(TWO))
    first = first_of(finding)
    assert finding.summary == "rank 0 of reference and rank 1 of local differ in x_t after step 3"
    assert (first.step, first.ranks, first.sides) == (3, (0, 1), ("reference", "local"))
    assert finding.details == ("rank 0 of reference and rank 0 of local agree in every byte",)


def test_all_ranks_may_be_equal_and_wrong() -> None:
    traces = clean(TWO)
    for trace in traces:
        flip(trace.x_t, (6, 3, 2), 31)
    assert ranks_agree(traces).verdict is Verdict.PASS
    finding = matches_reference(traces, reference(TWO))
    assert (first_of(finding).step, first_of(finding).ranks) == (6, (0, 0))
    assert finding.details == ("rank 0 of reference and rank 1 of local differ in x_t after step 6",)


# loops_agree.


def three_loops() -> dict[str, list[Trace]]:
    return {kind: clean(TWO, kind) for kind in ("broadcast", "local", "round_robin")}


def test_loops_agree() -> None:
    finding = loops_agree(three_loops())
    assert (finding.name, finding.loop, finding.verdict) == ("loops_agree", "*", Verdict.PASS)
    assert finding.summary == "broadcast, local, round_robin hold the same bytes on every rank after every step"
    assert finding.compared == Compared(STEPS, 4 * TENSORS * ELEMENTS), "two pairs of loops, two ranks each"


@pytest.mark.parametrize("runs", [{}, {"local": clean(TWO)}])
def test_one_loop_has_no_other_to_agree_with(runs: dict[str, list[Trace]]) -> None:
    finding = loops_agree(runs)
    assert (finding.verdict, finding.summary) == (Verdict.UNKNOWN, "one loop has no other version to agree with")


@pytest.mark.parametrize("rank", [0, 1])
def test_the_loop_that_differs(rank: int) -> None:
    runs = three_loops()
    flip(runs["local"][rank].x_t, (2, 0, 1))
    finding = loops_agree(runs)
    first = first_of(finding)
    assert finding.summary == f"rank {rank} of broadcast and rank {rank} of local differ in x_t after step 2"
    assert (first.step, first.ranks, first.sides) == (2, (rank, rank), ("broadcast", "local"))
    assert f"rank {rank} of local and rank {rank} of round_robin differ in x_t after step 2" in finding.details
    assert len(finding.details) == 3


def test_the_last_of_three_loops_is_looked_at() -> None:
    runs = three_loops()
    flip(runs["round_robin"][1].final, (0, 0))
    assert first_of(loops_agree(runs)).sides == ("local", "round_robin")


def test_loops_with_different_worlds_are_compared_where_both_have_a_rank() -> None:
    runs = {"local": clean(TWO), "round_robin": clean(TWO, "round_robin", 1)}
    assert loops_agree(runs).compared == Compared(STEPS, TENSORS * ELEMENTS)


def test_bits_not_values() -> None:
    traces = clean(TWO)
    for rank, zero in enumerate((0.0, -0.0)):
        traces[rank].x_t[3, 0, 0] = zero
    assert torch.equal(traces[0].x_t, traces[1].x_t)
    assert first_of(ranks_agree(traces)).step == 3
    for trace in traces:
        trace.x_t[3, 0, 0] = float("nan")
    assert not torch.equal(traces[0].x_t, traces[1].x_t)
    assert ranks_agree(traces).verdict is Verdict.PASS


def test_a_start_that_was_cast_for_the_network_is_held_to_the_cast_reference() -> None:
    right = reference(TWO)
    assert right.start is not None
    cast = [replace(trace, start=right.start.bfloat16()) for trace in clean(TWO)]
    assert matches_reference(cast, right).verdict is Verdict.PASS
    other = [replace(trace, start=(right.start + 1).bfloat16()) for trace in clean(TWO)]
    finding = matches_reference(other, right)
    assert finding.verdict is Verdict.FAIL and "before step 0" in finding.summary
