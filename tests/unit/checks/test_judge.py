"""All checks together: clean traces pass, and whatever single thing is damaged, some check fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from traces import (
    CHANNELS,
    STEPS,
    TOKENS,
    changed,
    clean,
    cut,
    evidence,
    flip,
    judged,
    reference,
    small_request,
    swapped,
    verdicts,
)

from verify.checks.judging import LoopRun, judge, judge_finished
from verify.expected import ANY
from verify.request import DenoiseRequest
from verify.trace.trace import Trace
from verify.verdict import Verdict, merge

NAMES = [
    "environments_agree",
    "ranks_agree",
    "matches_reference",
    "schedule",
    "collectives",
    "sent_as_computed",
    "parallelism_engaged",
    "cache_frozen",
    "state_frozen",
    "observed",
    "finite",
]
WORLDS = [("broadcast", 2), ("local", 2), ("round_robin", 2), ("broadcast", 3), ("local", 3), ("round_robin", 3)]


@pytest.mark.parametrize(("kind", "ranks"), WORLDS)
@pytest.mark.parametrize("interval", [(0.4, 1.0), (0.4, 0.99)], ids=["guided start", "unguided start"])
def test_clean_traces_pass_every_check(kind: str, ranks: int, interval: tuple[float, float]) -> None:
    request = small_request(ranks, cfg_interval=interval)
    findings = judged(request, clean(request, kind), kind)
    assert list(findings) == [*NAMES, "not_vacuous"]
    assert {finding.verdict for finding in findings.values()} == {Verdict.PASS}
    assert merge(finding.verdict for finding in findings.values()) is Verdict.PASS


def test_the_order_in_which_a_reader_looks() -> None:
    request = small_request(2)
    runs = {kind: LoopRun(clean(request, kind), kind) for kind in ("broadcast", "local")}
    findings = judge(request, runs, evidence(reference(request)))
    assert [(f.name, f.loop) for f in findings] == [
        *[(name, "broadcast") for name in NAMES],
        *[(name, "local") for name in NAMES],
        ("loops_agree", "*"),
        ("not_vacuous", "*"),
    ]
    assert {f.verdict for f in findings} == {Verdict.PASS}


def test_one_loop_is_not_compared_with_others() -> None:
    request = small_request(2)
    assert list(judged(request, clean(request))) == [*NAMES, "not_vacuous"]


def test_each_loop_is_held_to_what_it_is_expected_to_be() -> None:
    request = small_request(2)
    for kind in ("broadcast", "local"):
        for expect in ("broadcast", "local", ANY):
            findings = judged(request, clean(request, kind), expect)
            assert findings["collectives"].verdict is (Verdict.PASS if expect in (kind, ANY) else Verdict.FAIL)


def test_what_one_rank_cannot_be_judged_for() -> None:
    request = small_request(2)
    said = verdicts(list(judged(request, clean(request, "round_robin", 1), "round_robin").values()))
    unknown = {name for name, verdict in said.items() if verdict is Verdict.UNKNOWN}
    assert unknown == {"ranks_agree", "sent_as_computed", "parallelism_engaged", "environments_agree"}
    assert merge(said.values()) is Verdict.UNKNOWN


def test_without_guidance_nothing_passes_as_parallel() -> None:
    request = small_request(2, cfg_interval=(0.0, 0.0))
    said = verdicts(list(judged(request, clean(request)).values()))
    assert said["parallelism_engaged"] is Verdict.UNKNOWN
    assert merge(said.values()) is Verdict.UNKNOWN


def test_without_a_reference_nothing_passes() -> None:
    request = small_request(2)
    findings = judge(request, {"local": LoopRun(clean(request), "local")}, evidence())
    assert {f.name for f in findings if f.verdict is not Verdict.PASS} == {"matches_reference"}
    assert merge(f.verdict for f in findings) is Verdict.UNKNOWN


def test_no_loop_no_verdict() -> None:
    assert judge(small_request(2), {}, evidence()) == []
    assert merge([]) is Verdict.UNKNOWN


# A schedule other than the request's, known or not.


def of_all_steps_guided(request: DenoiseRequest) -> tuple[DenoiseRequest, list[Trace]]:
    """What a loop does that guides the last step too."""
    everywhere = request.resolved(replace(request.schedule, guided=(True,) * STEPS))
    return everywhere, clean(everywhere)


def test_a_known_schedule_that_is_another_is_told_once() -> None:
    request = small_request(2)
    everywhere, traces = of_all_steps_guided(request)
    findings = judged(request, [replace(trace, followed=everywhere.schedule) for trace in traces])
    assert [name for name, finding in findings.items() if finding.verdict is Verdict.FAIL] == ["schedule"]


def test_the_schedule_of_one_rank_alone_is_known_too() -> None:
    request = small_request(2)
    everywhere, _ = of_all_steps_guided(request)
    traces = [replace(trace, followed=everywhere.schedule) for trace in clean(everywhere, "round_robin", 1)]
    findings = judged(request, traces, "round_robin")
    assert [name for name, finding in findings.items() if finding.verdict is Verdict.FAIL] == ["schedule"]


def test_a_schedule_that_nobody_knows_shows_in_the_work() -> None:
    request = small_request(2)
    _, traces = of_all_steps_guided(request)
    findings = judged(request, traces)
    failed = [name for name, finding in findings.items() if finding.verdict is Verdict.FAIL]
    assert failed == ["collectives", "parallelism_engaged"]
    assert findings["collectives"].summary == "rank 0 called all_gather in step 6, expected none"


# Whatever is damaged.

Damage = Callable[[list[Trace], int, Any], list[Trace]]


def in_x_t(traces: list[Trace], rank: int, draw: Any) -> list[Trace]:
    flip(traces[rank].x_t, (draw(st.integers(0, STEPS - 1)), *place(draw)), draw(st.integers(0, 31)))
    return traces


def in_final(traces: list[Trace], rank: int, draw: Any) -> list[Trace]:
    flip(traces[rank].final, place(draw), draw(st.integers(0, 31)))
    return traces


def in_start(traces: list[Trace], rank: int, draw: Any) -> list[Trace]:
    start = traces[rank].start
    assert start is not None
    flip(start, place(draw), draw(st.integers(0, 31)))
    return traces


def in_foreign(traces: list[Trace], rank: int, draw: Any) -> list[Trace]:
    step, count = draw(st.integers(0, STEPS - 1)), draw(st.integers(1, TOKENS * CHANNELS))
    return changed(traces, rank, foreign=swapped(traces[rank].foreign, step, count))


def in_branches(traces: list[Trace], rank: int, draw: Any) -> list[Trace]:
    step, branches = draw(st.integers(0, STEPS - 1)), traces[rank].branches
    other = tuple(draw(st.lists(st.sampled_from(["gen", "text", "img"]), max_size=3).filter(
        lambda names: tuple(names) != branches[step])))  # fmt: skip
    return changed(traces, rank, branches=swapped(branches, step, other))


def in_collectives(traces: list[Trace], rank: int, draw: Any) -> list[Trace]:
    step = draw(st.integers(0, STEPS - 1).filter(lambda step: traces[rank].collectives[step]))
    called = traces[rank].collectives[step]
    at = draw(st.integers(0, len(called) - 1))
    one = called[at]
    others = [
        [*called[:at], *called[at + 1 :]],
        [*called, one],
        swapped(called, at, one._replace(name="barrier")),
        swapped(called, at, one._replace(dtype="float16")),
        swapped(called, at, one._replace(shape=(CHANNELS, TOKENS))),
        swapped(called, at, one._replace(src=1)),
    ]
    return changed(
        traces, rank, collectives=swapped(traces[rank].collectives, step, tuple(draw(st.sampled_from(others))))
    )


def in_caches(traces: list[Trace], rank: int, draw: Any) -> list[Trace]:
    caches = traces[rank].caches
    at = draw(st.integers(0, len(caches) - 1))
    fields = draw(
        st.sampled_from([{"before": "x"}, {"after": "x"}, {"elements": 23}, {"branch": "x"}, {"tensor": "x"}])
    )
    kept = draw(
        st.sampled_from([(*caches[:at], *caches[at + 1 :]), swapped(caches, at, replace(caches[at], **fields))])
    )
    return changed(traces, rank, caches=kept)


def in_environment(traces: list[Trace], rank: int, draw: Any) -> list[Trace]:
    key = draw(st.sampled_from(["torch", "threads", "something else"]))
    return changed(traces, rank, environment=traces[rank].environment | {key: "another"})


def in_steps(traces: list[Trace], rank: int, draw: Any) -> list[Trace]:
    steps = draw(st.integers(1, STEPS - 1))
    return [cut(trace, steps) if trace.rank == rank else trace for trace in traces]


def in_a_dtype(traces: list[Trace], rank: int, draw: Any) -> list[Trace]:
    dtype = draw(st.sampled_from([torch.float64, torch.float16]))
    return changed(traces, rank, x_t=traces[rank].x_t.to(dtype), final=traces[rank].final.to(dtype))


# Each kind of damage, and a check that must be among those that see it.
DAMAGES: dict[Damage, str] = {
    in_x_t: "ranks_agree",
    in_final: "observed",
    in_start: "ranks_agree",
    in_foreign: "observed",
    in_branches: "parallelism_engaged",
    in_collectives: "collectives",
    in_caches: "cache_frozen",
    in_environment: "environments_agree",
    in_steps: "schedule",
    in_a_dtype: "ranks_agree",
}


def place(draw: Any) -> tuple[int, int]:
    return draw(st.integers(0, TOKENS - 1)), draw(st.integers(0, CHANNELS - 1))


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: str(damage.__name__))
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_damage_to_any_rank_is_seen(damage: Damage, data: st.DataObject) -> None:
    kind, ranks = data.draw(st.sampled_from(WORLDS))
    rank = data.draw(st.integers(0, ranks - 1))
    request = small_request(ranks)
    traces = damage(clean(request, kind), rank, data.draw)
    said = verdicts(list(judged(request, traces, kind).values()))
    assert said[DAMAGES[damage]] is Verdict.FAIL
    assert merge(said.values()) is Verdict.FAIL


@pytest.mark.parametrize("damage", [in_x_t, in_final, in_start, in_steps, in_a_dtype], ids=lambda d: str(d.__name__))
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_damage_to_the_reference_is_seen(damage: Damage, data: st.DataObject) -> None:
    kind, ranks = data.draw(st.sampled_from(WORLDS))
    request = small_request(ranks)
    (other,) = damage([reference(request)], 0, data.draw)
    said = verdicts(judge(request, {kind: LoopRun(clean(request, kind), kind)}, evidence(other)))
    assert [name for name, verdict in said.items() if verdict is Verdict.FAIL] == ["matches_reference"]


def test_what_may_differ_is_no_damage() -> None:
    request = small_request(2)
    traces = changed(clean(request), 1, seconds=99.0, notes=("a note",))
    traces = changed(traces, 1, environment=traces[1].environment | {"host": "other", "gpu_uuid": "u"})
    assert {finding.verdict for finding in judged(request, traces).values()} == {Verdict.PASS}


# A loop that some rank never finished.


def test_survivors_that_did_right_say_nothing() -> None:
    request = small_request(2)
    assert judge_finished(request, LoopRun(clean(request)[:1], "local"), 2) == []


def test_survivors_that_did_wrong_are_blamed() -> None:
    request = small_request(2)
    _, traces = of_all_steps_guided(request)
    (finding,) = judge_finished(request, LoopRun(traces[1:], "local"), 2)
    assert (finding.name, finding.verdict) == ("collectives", Verdict.FAIL)
    assert finding.summary == "rank 1 called all_gather in step 6, expected none"
    assert finding.first_divergence is not None and finding.first_divergence.ranks == (0, 1)
    assert judge_finished(request, LoopRun(traces[1:], ANY), 2) == [], "held to nothing, it can be blamed for nothing"


def test_no_survivor_no_blame() -> None:
    assert judge_finished(small_request(2), LoopRun([], "local"), 2) == []


def test_an_exception_of_a_check_costs_no_other_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise KeyError("no such entry")

    monkeypatch.setattr("verify.checks.judging.collectives", fails)
    request = small_request(2)
    findings = judged(request, clean(request))
    assert (findings["collectives"].verdict, findings["collectives"].summary) == (
        Verdict.UNKNOWN,
        "the check itself failed: KeyError: 'no such entry'",
    )
    assert {name for name, finding in findings.items() if finding.verdict is not Verdict.PASS} == {"collectives"}


def test_one_rank_that_breaks_the_contract_is_named() -> None:
    request = small_request(2)
    traces = changed(clean(request), 1, breach="what the loop returned is None, expected a tensor")
    findings = judged(request, traces)
    assert findings["observed"].verdict is Verdict.FAIL
    assert findings["observed"].summary == (
        f"rank 1 broke the loop's contract in step {STEPS}: what the loop returned is None, expected a tensor"
    )
    assert findings["ranks_agree"].verdict is Verdict.UNKNOWN
