"""What the evidence of ranks that differ holds for reports."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from traces import ELEMENTS, STEPS, changed, clean, flip, small_request

from verify.checks.agreement import Pair
from verify.checks.ranks_agree import ranks_agree
from verify.trace.trace import Trace
from verify.verdict import Divergence, Verdict

TWO = small_request(2)


def evidence(traces: list[Trace]) -> dict[str, Any]:
    finding = ranks_agree(traces)
    assert finding.verdict is Verdict.FAIL
    return finding.data


def test_steps_of_another_dtype_differ_in_every_element_whatever_their_bits() -> None:
    traces = clean(TWO)
    for trace in traces:
        trace.x_t.zero_()
    (pair,) = evidence(changed(traces, 1, x_t=traces[1].x_t.half()))["pairs"]
    assert pair["mismatched_by_step"] == [ELEMENTS] * STEPS
    assert pair["max_ulp_by_step"] == [None] * STEPS


def test_integers_are_not_told_in_ulps() -> None:
    traces = [replace(trace, x_t=torch.zeros_like(trace.x_t, dtype=torch.int32)) for trace in clean(TWO)]
    traces[1].x_t[2, 0, 0] = 5
    (pair,) = evidence(traces)["pairs"]
    assert pair["mismatched_by_step"] == [0, 0, 1, 0, 0, 0, 0]
    assert pair["max_ulp_by_step"] == [None] * STEPS


def test_a_map_needs_tokens_of_one_shape_and_dtype() -> None:
    traces = clean(TWO)
    flat = [replace(trace, x_t=trace.x_t.clone().view(STEPS, ELEMENTS)) for trace in traces]
    flat[1].x_t[2, 0] += 1
    assert evidence(flat)["map"] == {"sides": ["rank 0 of local", "rank 1 of local"], "tokens": None}
    assert evidence(changed(traces, 1, x_t=traces[1].x_t.half()))["map"]["tokens"] is None
    empty = [replace(trace, x_t=trace.x_t[:, :, :0]) for trace in traces]
    assert Pair(empty[0], empty[1]).tokens_at(Divergence(0, (0, 1), "x_t")) is None


def test_a_nan_has_no_distance() -> None:
    traces = clean(TWO)
    flip(traces[1].x_t, (1, 0, 0))
    traces[1].x_t[4, 0, 0] = float("nan")
    (pair,) = evidence(traces)["pairs"]
    assert pair["max_ulp_by_step"] == [0, 1, 0, 0, None, 0, 0]
