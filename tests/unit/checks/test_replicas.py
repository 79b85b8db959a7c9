"""Replicas of one group: that they agree, what is named where they do not, and how their findings are told as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from example_documents import json_of
from traces import ELEMENTS, STEPS, clean, evidence, flip, reference, small_request

from verify.checks.judging import LoopRun, judge
from verify.checks.matches_reference import matches_reference
from verify.checks.merging import over_replicas
from verify.checks.ranks_agree import ranks_agree
from verify.checks.records import CHECKS
from verify.checks.replicas_agree import replicas_agree
from verify.report.documents.reading import document_of
from verify.report.message import failure_text
from verify.request import DenoiseRequest
from verify.runner.run_report import RunReport
from verify.trace.state import WEIGHTS, StateRecord
from verify.trace.trace import Trace
from verify.verdict import Compared, Divergence, Finding, Verdict

REQUEST = small_request(2)
TENSORS = STEPS + 2


def replica(number: int, host: str = "", request: DenoiseRequest = REQUEST, **environment: Any) -> list[Trace]:
    """A clean replica on a host of its own; no two share memory."""
    return [
        replace(
            trace,
            replica=number,
            environment={**trace.environment, "host": host or f"node-{number}", "replica": number, **environment},
        )
        for trace in clean(request)
    ]


def first_of(finding: Finding) -> Divergence:
    assert finding.verdict is Verdict.FAIL
    assert finding.first_divergence is not None
    return finding.first_divergence


def test_equal_replicas_agree() -> None:
    finding = replicas_agree([replica(0), replica(1), replica(2)])
    assert (finding.name, finding.loop, finding.verdict) == ("replicas_agree", "local", Verdict.PASS)
    assert finding.summary == "3 replicas on 3 hosts hold the same bytes on every rank after every step"
    assert finding.compared == Compared(STEPS, 2 * 2 * TENSORS * ELEMENTS), "two ranks of two replicas with the first"


def test_one_replica_has_no_other_to_agree_with() -> None:
    finding = replicas_agree([replica(0)])
    assert finding.verdict is Verdict.UNKNOWN
    assert finding.summary == "one replica has no other to agree with; start twice as many processes"


@pytest.mark.parametrize("step", [0, 4, STEPS - 1])
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("odd", [1, 2])
def test_one_bit_in_one_replica(step: int, rank: int, odd: int) -> None:
    replicas = [replica(number) for number in range(3)]
    flip(replicas[odd][rank].x_t, (step, 2, 1))
    finding = replicas_agree(replicas)
    first = first_of(finding)
    assert (first.step, first.ranks, first.replicas) == (step, (rank, rank), (0, odd))
    assert first.sides == ("replica 0", f"replica {odd}")
    assert first.difference is not None
    assert (first.difference.index, first.difference.mismatched) == ((2, 1), 1)
    assert finding.summary == (
        f"rank {rank} of local in replica 0 and rank {rank} of local in replica {odd} differ in x_t after step {step}"
    )
    said = failure_text(finding).splitlines()
    assert said[1] == f"  where: step {step}, rank {rank}, replicas 0 and {odd}, index [2, 1]"
    assert said[2].startswith("  replica 0  0x")
    assert said[-1] == f"  usually: {CHECKS['replicas_agree'].usual_causes}"
    assert len([line for line in finding.details if line.endswith("agree in every byte")]) == 3


def test_the_same_wrong_start_in_one_replica() -> None:
    replicas = [replica(0), replica(1)]
    for trace in replicas[1]:
        assert trace.start is not None
        flip(trace.start, (0, 0))
    first = first_of(replicas_agree(replicas))
    assert (first.step, first.replicas) == (-1, (0, 1))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("gpu", ("NVIDIA H100", "NVIDIA H200")),
        ("driver", ("570.1", "580.2")),
        ("torch", ("2.11.0", "2.13.0")),
        ("nccl", ("2.28.9", "2.29.1")),
        ("flags", ({"deterministic": True, "tf32": False}, {"deterministic": True, "tf32": True})),
        ("variables", ({}, {"NVIDIA_TF32_OVERRIDE": "1"})),
        ("cpu", ("one", "another")),
    ],
)
@pytest.mark.parametrize("bits_differ", [False, True])
def test_an_environment_is_named_before_bits_are_blamed(name: str, values: Sequence[Any], bits_differ: bool) -> None:
    replicas = [replica(number, **{name: values[number]}) for number in range(2)]
    if bits_differ:
        flip(replicas[1][1].x_t, (3, 0, 0))
    finding = replicas_agree(replicas)
    first = first_of(finding)
    # Of many flags or variables, those that differ.
    told, (one, other) = {
        "flags": ("tf32", (False, True)),
        "variables": ("NVIDIA_TF32_OVERRIDE", (None, "1")),
    }.get(name, (name, values))
    assert (first.step, first.tensor, first.replicas, first.ranks) == (None, f"environment, {told}", (0, 1), (0, 0))
    begins = f"rank 0 of replica 0 (on node-0) and rank 0 of replica 1 (on node-1) run with a different {told}"
    assert finding.details[0] == (
        f"{told}: {one!r} in rank 0 of replica 0 (on node-0), {other!r} in rank 0 of replica 1 (on node-1)"
    )
    if bits_differ:
        bits = "rank 1 of local in replica 0 and rank 1 of local in replica 1 differ in x_t after step 3"
        assert finding.summary == f"{begins}, which can explain that {bits}"
        assert finding.data["pairs"][1]["mismatched_by_step"][3] == 1
    else:
        assert finding.summary == f"{begins}; their bytes agree in this request"


def test_the_likeliest_cause_is_named_first() -> None:
    one = replica(0, gpu="NVIDIA H100", driver="570.1", multiprocessors=114)
    other = replica(1, gpu="NVIDIA H200", driver="580.2", multiprocessors=132)
    assert first_of(replicas_agree([one, other])).tensor == "environment, gpu"


def test_other_weights_are_named_before_bits_are_blamed() -> None:
    replicas = [
        [replace(trace, state=StateRecord({WEIGHTS: digest}, (), 8)) for trace in replica(number)]
        for number, digest in enumerate("ab")
    ]
    finding = replicas_agree(replicas)
    assert first_of(finding).tensor == "environment, digest of the weights"
    assert finding.summary == (
        "rank 0 of replica 0 (on node-0) and rank 0 of replica 1 (on node-1) hold different weights; "
        "their bytes agree in this request"
    )


def test_what_may_differ_between_hosts() -> None:
    replicas = [replica(0, visible_gpus="0", gpu_uuid="a"), replica(1, visible_gpus="1", gpu_uuid="b")]
    assert replicas_agree(replicas).verdict is Verdict.PASS


def test_what_is_told_of_an_environment_that_differs() -> None:
    expected = Finding(
        name="replicas_agree",
        loop="local",
        verdict=Verdict.FAIL,
        summary=(
            "rank 0 of replica 0 (on node-0) and rank 0 of replica 1 (on node-1) run with a different gpu; "
            "their bytes agree in this request"
        ),
        compared=Compared(STEPS, 2 * TENSORS * ELEMENTS),
        first_divergence=Divergence(None, (0, 0), "environment, gpu", replicas=(0, 1)),
        details=tuple(
            f"gpu: 'H100' in rank {rank} of replica 0 (on node-0), 'H200' in rank {rank} of replica 1 (on node-1)"
            for rank in (0, 1)
        ),
    )
    assert replicas_agree([replica(0, gpu="H100"), replica(1, gpu="H200")]) == expected


def test_bytes_that_were_not_compared_are_not_said_to_agree() -> None:
    """Where no step was observed, the environment that differs is told, and nothing of bytes."""
    replicas = [
        [replace(trace, x_t=trace.x_t[:0]) for trace in traces]
        for traces in (replica(0, gpu="H100"), replica(1, gpu="H200"))
    ]
    finding = replicas_agree(replicas)
    assert finding.verdict is Verdict.FAIL
    assert finding.summary == (
        "rank 0 of replica 0 (on node-0) and rank 0 of replica 1 (on node-1) run with a different gpu"
    )
    assert finding.compared == Compared(0, 2 * 2 * ELEMENTS), "where each rank began and what it returned"


def test_a_host_that_nobody_named_is_left_out() -> None:
    replicas = [
        [replace(trace, environment={"gpu": gpu}) for trace in replica(number)]
        for number, gpu in enumerate(("H100", "H200"))
    ]
    finding = replicas_agree(replicas)
    begins = "rank 0 of replica 0 and rank 0 of replica 1 run with a different gpu"
    assert finding.summary == f"{begins}; their bytes agree in this request"
    assert finding.details[0] == "gpu: 'H100' in rank 0 of replica 0, 'H200' in rank 0 of replica 1"


@pytest.mark.parametrize(("hosts", "shown"), [(("a", "a"), "1 host"), (("a", "b"), "2 hosts")])
def test_hosts_are_counted_and_replicas_of_one_rank_compared(hosts: Sequence[str], shown: str) -> None:
    finding = replicas_agree([replica(number, host)[:1] for number, host in enumerate(hosts)])
    claim = f"2 replicas on {shown} hold the same bytes on every rank after every step"
    assert finding == Finding("replicas_agree", "local", Verdict.PASS, claim, Compared(STEPS, TENSORS * ELEMENTS))


@pytest.mark.parametrize("short", [0, 1])
def test_a_replica_that_lacks_a_rank_is_not_compared_in_part(short: int) -> None:
    replicas = [replica(0), replica(1)]
    replicas[short].pop()
    with pytest.raises(ValueError, match=r"^zip\(\) argument 2 is (shorter|longer) than argument 1$"):
        replicas_agree(replicas)


@pytest.mark.parametrize("unnumbered", [0, 1])
def test_no_finding_names_a_replica_without_a_number(unnumbered: int) -> None:
    replicas = [replica(0, gpu="H100"), replica(1, gpu="H200")]
    replicas[unnumbered] = [replace(trace, replica=None) for trace in replicas[unnumbered]]
    with pytest.raises(AssertionError):
        replicas_agree(replicas)


@pytest.mark.parametrize("place", ["reference", "rank"])
def test_only_two_replicas_are_told_by_their_numbers(place: str) -> None:
    """Of a rank and a reference, one of which belongs to no replica, the loops are told."""
    right, traces = reference(REQUEST), replica(1)
    if place == "reference":
        right, traces = replace(right, replica=0), clean(REQUEST)
    flip(traces[1].x_t, (3, 0, 0))
    first = first_of(matches_reference(traces, right))
    assert (first.step, first.ranks, first.sides, first.replicas) == (3, (0, 1), ("reference", "local"), None)


def test_ranks_of_one_replica_are_told_as_ranks() -> None:
    traces = replica(1)
    flip(traces[1].x_t, (3, 0, 0))
    first = first_of(ranks_agree(traces))
    assert (first.step, first.ranks, first.sides, first.replicas) == (3, (0, 1), None, (1, 1))


def findings(traces: Sequence[Trace]) -> list[Finding]:
    return judge(REQUEST, {"local": LoopRun(traces, "local")}, evidence(reference(REQUEST)))


def test_what_holds_in_every_replica_is_told_once() -> None:
    alone = findings(replica(0))
    merged = over_replicas([findings(replica(0)), findings(replica(1))])
    assert [(f.name, f.verdict) for f in merged] == [(f.name, Verdict.PASS) for f in alone]
    for one, both in zip(alone, merged, strict=True):
        assert both.compared == Compared(one.compared.steps, 2 * one.compared.elements)
        assert both.summary == f"{one.summary}, in each of 2 replicas"


def test_what_fails_in_one_replica_names_it() -> None:
    damaged = replica(1)
    flip(damaged[1].x_t, (4, 2, 1))
    merged = {f.name: f for f in over_replicas([findings(replica(0)), findings(damaged), findings(replica(2))])}
    assert {name for name, f in merged.items() if f.verdict is Verdict.FAIL} == {"ranks_agree", "matches_reference"}
    found = merged["ranks_agree"]
    first = first_of(found)
    assert (first.step, first.ranks, first.replicas) == (4, (0, 1), (1, 1))
    assert found.summary.startswith("replica 1: rank 0 of local in replica 1 and rank 1 of local in replica 1 differ")
    assert found.details[:2] == ("replica 0: pass", "replica 2: pass")
    assert found.data["replica"] == 1
    assert "  where: step 4, ranks 0 and 1, replica 1, index [2, 1]" in failure_text(found)


def test_the_earliest_of_several_is_told() -> None:
    late, early = replica(0), replica(1)
    flip(late[1].x_t, (5, 0, 0))
    flip(early[1].x_t, (2, 0, 0))
    merged = {f.name: f for f in over_replicas([findings(late), findings(early)])}
    assert first_of(merged["ranks_agree"]).replicas == (1, 1)
    assert merged["ranks_agree"].details[0].startswith("replica 0: fail: rank 0 of local in replica 0")


def test_what_one_replica_cannot_judge_does_not_pass() -> None:
    unjudged = [replace(f, verdict=Verdict.UNKNOWN) if f.name == "finite" else f for f in findings(replica(1))]
    merged = {f.name: f for f in over_replicas([findings(replica(0)), unjudged])}
    assert merged["finite"].verdict is Verdict.UNKNOWN
    assert merged["ranks_agree"].verdict is Verdict.PASS


def test_the_document_of_several_replicas() -> None:
    replicas = [replica(0), replica(1)]
    flip(replicas[1][0].x_t, (1, 0, 0))
    report = RunReport(
        verdict=Verdict.FAIL,
        target="builtin",
        request=REQUEST.to_dict(),
        steps=STEPS,
        guided_steps=6,
        world_size=2,
        backend="gloo",
        device="cpu",
        findings=[replicas_agree(replicas)],
        replicas=[
            {"replica": 0, "ranks": [0, 1], "hosts": ["a", "a"]},
            {"replica": 1, "ranks": [2, 3], "hosts": ["b", "b"]},
        ],
    )
    first = report.document.checks[0].first_divergence
    assert first is not None
    assert first.replicas == (0, 1)
    assert document_of(json_of(report.document)) == report.document
    assert "2 replicas of 2 ranks on 2 hosts over gloo on cpu" in report.text()
    assert replace(report, replicas=()).document.replicas == ()


def test_ranks_of_one_replica_are_compared_as_ever() -> None:
    traces = replica(0)
    assert all(f.verdict is Verdict.PASS for f in findings(traces))
    assert torch.equal(traces[0].x_t, clean(REQUEST)[0].x_t)
