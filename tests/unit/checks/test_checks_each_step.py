"""each_step, the inductive form of matches_reference, on traces made by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from traces import ELEMENTS, STEPS, changed, clean, flip, reference, small_request

from verify.bits import first_difference
from verify.checks.each_step import each_step
from verify.trace.trace import Trace
from verify.verdict import Compared, Divergence, Finding, Verdict

TWO = small_request(2)
Recomputed = list[tuple[int, tuple[int, ...], Tensor]]


def noise() -> Tensor:
    start = reference(TWO).start
    assert start is not None
    return start


def recomputed(ranks: Sequence[int] = (0, 1)) -> Recomputed:
    """Every step as the reference takes it, for all ranks at once."""
    return [(step, tuple(ranks), x_t.clone()) for step, x_t in enumerate(reference(TWO).x_t)]


def assert_fails(finding: Finding, summary: str, divergence: Divergence, wrong: list[list[int]]) -> None:
    assert (finding.name, finding.loop, finding.verdict) == ("matches_reference", "local", Verdict.FAIL)
    assert finding.summary == summary
    assert finding.first_divergence == divergence
    assert finding.details == tuple(f"also wrong by itself: step {step} on rank {rank}" for step, rank in wrong[1:])
    assert finding.data == {"wrong_steps": wrong}
    assert finding.compared == Compared(STEPS, (2 * STEPS + 2) * ELEMENTS)


def test_every_step_is_the_references() -> None:
    finding = each_step(clean(TWO), noise(), recomputed())
    assert (finding.name, finding.loop, finding.verdict) == ("matches_reference", "local", Verdict.PASS)
    assert finding.summary == (
        "every step, computed anew on another rank from the x_t before it, gives the same bytes"
    )  # fmt: skip
    # The start of both ranks and each of their steps.
    assert finding.compared == Compared(STEPS, (2 * STEPS + 2) * ELEMENTS)
    assert (finding.first_divergence, finding.details, finding.data) == (None, (), {})


@pytest.mark.parametrize("step", [0, 3, STEPS - 1])
@pytest.mark.parametrize("rank", [0, 1])
def test_one_wrong_step(step: int, rank: int) -> None:
    traces = clean(TWO)
    flip(traces[rank].x_t, (step, 2, 1))
    assert_fails(
        each_step(traces, noise(), recomputed()),
        f"rank {rank} of local takes step {step} otherwise than the reference does from the same x_t",
        Divergence(
            step,
            (0, rank),
            "x_t",
            ("reference", "local"),
            first_difference(reference(TWO).x_t[step], traces[rank].x_t[step]),
        ),
        [[step, rank]],
    )


def test_another_start() -> None:
    traces = clean(TWO)
    assert traces[1].start is not None
    flip(traces[1].start, (0, 2))
    assert_fails(
        each_step(traces, noise(), recomputed()),
        "rank 1 of local begins with another x_t than the request's noise",
        Divergence(-1, (0, 1), "x_t", ("reference", "local"), first_difference(noise(), traces[1].start)),
        [[-1, 1]],
    )


def test_every_wrong_step_is_told_the_earliest_first() -> None:
    traces = clean(TWO)
    assert traces[1].start is not None
    for rank, step in [(0, 5), (1, 2), (0, 2)]:
        flip(traces[rank].x_t, (step, 0, 0))
    finding = each_step(traces, noise(), recomputed()[::-1])
    assert finding.data == {"wrong_steps": [[2, 0], [2, 1], [5, 0]]}
    assert finding.summary == "rank 0 of local takes step 2 otherwise than the reference does from the same x_t"
    assert finding.details == (
        "also wrong by itself: step 2 on rank 1",
        "also wrong by itself: step 5 on rank 0",
    )
    flip(traces[1].start, (0, 0))
    assert each_step(traces, noise(), recomputed()).data["wrong_steps"][0] == [-1, 1]


def test_structure_has_no_first_element() -> None:
    traces = clean(TWO)
    half = changed(traces, 1, x_t=traces[1].x_t.half())
    finding = each_step(half, noise(), recomputed())
    assert finding.first_divergence == Divergence(0, (0, 1), "x_t", ("reference", "local"))
    assert finding.data == {"wrong_steps": [[step, 1] for step in range(STEPS)]}
    turned = changed(traces, 1, x_t=traces[1].x_t.reshape(STEPS, 3, 4))
    assert each_step(turned, noise(), recomputed()).first_divergence == finding.first_divergence


def unguided_start() -> tuple[list[Trace], Recomputed]:
    """Rank 1 evaluates nothing in step 0, so nobody knows what it began that step with."""
    first, *rest = recomputed()
    return changed(clean(TWO), 1, start=None), [(0, (0,), first[2]), *rest]


def test_a_rank_that_evaluated_nothing_in_step_0_is_not_due_for_it() -> None:
    traces, anew = unguided_start()
    finding = each_step(traces, noise(), anew)
    assert finding.verdict is Verdict.PASS
    assert finding.compared == Compared(STEPS, (2 * STEPS - 1 + 1) * ELEMENTS)
    flip(traces[1].x_t, (1, 0, 0))
    assert each_step(traces, noise(), anew).data == {"wrong_steps": [[1, 1]]}


@pytest.mark.parametrize("step", [0, 4, STEPS - 1])
def test_a_step_that_was_not_computed_anew(step: int) -> None:
    anew = [(s, (0,) if s == step else ranks, x_t) for s, ranks, x_t in recomputed()]
    finding = each_step(clean(TWO), noise(), anew)
    assert (finding.name, finding.loop, finding.verdict) == ("matches_reference", "local", Verdict.UNKNOWN)
    assert finding.summary == f"1 of {2 * STEPS} steps were not computed anew"
    assert finding.compared == Compared(STEPS, (2 * STEPS - 1 + 2) * ELEMENTS)
    # What is known to be wrong is told all the same.
    traces = clean(TWO)
    flip(traces[0].x_t, (2, 0, 0))
    assert each_step(traces, noise(), anew).verdict is Verdict.FAIL


def test_nothing_computed_anew_is_unknown() -> None:
    finding = each_step(clean(TWO), noise(), [])
    assert (finding.verdict, finding.summary) == (
        Verdict.UNKNOWN,
        f"{2 * STEPS} of {2 * STEPS} steps were not computed anew",
    )
    assert finding.compared == Compared(0, 2 * ELEMENTS)
    none = [changed([trace], trace.rank, x_t=trace.x_t[:0])[0] for trace in clean(TWO)]
    finding = each_step(none, noise(), [])
    assert (finding.verdict, finding.summary) == (Verdict.UNKNOWN, "0 of 0 steps were not computed anew")


def test_bits_not_values() -> None:
    traces, anew = clean(TWO), recomputed()
    traces[1].x_t[3, 0, 0], anew[3][2][0, 0] = 0.0, -0.0
    traces[0].x_t[3, 0, 0] = -0.0
    assert torch.equal(traces[1].x_t[3], anew[3][2])
    assert each_step(traces, noise(), anew).data == {"wrong_steps": [[3, 1]]}


def test_one_rank_alone_can_be_judged() -> None:
    (trace,) = clean(TWO, "round_robin", 1)
    finding = each_step([trace], noise(), recomputed([0]))
    assert (finding.loop, finding.verdict) == ("round_robin", Verdict.PASS)
    assert finding.compared == Compared(STEPS, (STEPS + 1) * ELEMENTS)


def test_a_step_computed_anew_twice_is_compared_twice() -> None:
    traces = clean(TWO)
    flip(traces[1].x_t, (3, 0, 0))
    anew = recomputed()
    finding = each_step(traces, noise(), [*anew, (3, (0, 1), anew[3][2].clone())])
    assert finding.data == {"wrong_steps": [[3, 1], [3, 1]]}
    assert finding.summary.startswith("rank 1 of local takes step 3 otherwise")
