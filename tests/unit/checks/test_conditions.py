"""environments_agree on what was seen while a loop ran, on code, and on variables nobody knows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from traces import STEPS, clean, flip, judged, small_request

from verify.checks.environments_agree import environments_agree, environments_at_start
from verify.environment.conditions import AtStart
from verify.environment.identity import Identity
from verify.environment.properties import MIXED
from verify.environment.watch import AFTER, BEFORE, OBSERVE, THREAD, VELOCITY, Look, Seen
from verify.trace.trace import Trace
from verify.verdict import Divergence, Verdict

USUAL = {"threads": 1, "default_dtype": "float32", "rounding": "to nearest", "gradients": False, THREAD: "the task's"}


def seen(changes: Mapping[int, Mapping[str, Any]], moment: str = VELOCITY, start: Mapping[str, Any] = USUAL) -> Seen:
    """The settings of a loop that are ``changes[step]`` at ``moment`` of a step, and as usual otherwise."""
    samples: list[Mapping[str, Any]] = [start]
    looks = [Look(-1, BEFORE, 0)]
    for step in range(STEPS):
        for when in (VELOCITY, OBSERVE):
            sample = {**start, **(changes.get(step, {}) if when == moment else {})}
            if sample not in samples:
                samples.append(sample)
            looks.append(Look(step, when, samples.index(sample)))
    sample = {**start, **changes.get(STEPS, {})}
    samples.append(sample)
    looks.append(Look(STEPS, AFTER, len(samples) - 1))
    return Seen(tuple(samples), tuple(looks))


def ran(count: int = 2, **given: Mapping[int, Any]) -> list[Trace]:
    """Clean traces; ``given``: for ``settings`` and ``identity``, what rank N has in place of the usual."""
    request = small_request(count)
    settings, identities = given.get("settings", {}), given.get("identity", {})
    return [
        replace(trace, settings=settings.get(trace.rank, seen({})), identity=identities.get(trace.rank, Identity()))
        for trace in clean(request)
    ]


def test_all_alike() -> None:
    finding = environments_agree(ran())
    assert finding.verdict is Verdict.PASS
    assert finding.summary == "4 properties equal on every rank", (
        "torch, threads, dtype and rounding; harmless ones are not counted"
    )
    assert finding.details == ()


@pytest.mark.parametrize("step", [0, 3, STEPS - 1])
@pytest.mark.parametrize("moment", [VELOCITY, OBSERVE])
def test_a_setting_that_differs_in_one_step(step: int, moment: str) -> None:
    finding = environments_agree(ran(settings={1: seen({step: {"threads": 2}}, moment)}))
    assert finding.verdict is Verdict.FAIL
    assert finding.summary == f"rank 1 ran step {step} with threads 2, rank 0 with 1"
    assert finding.first_divergence == Divergence(step, (0, 1), "environment, threads")
    when = {VELOCITY: "asking for a velocity", OBSERVE: "showing x_t"}[moment]
    assert finding.details == (f"threads in step {step}, {when}: 1 on rank 0, 2 on rank 1",)


def test_a_setting_that_is_left_behind_by_one_rank() -> None:
    finding = environments_agree(ran(settings={1: seen({STEPS: {"default_dtype": "float64"}})}))
    assert finding.summary == "rank 1 ended the loop with default_dtype float64, rank 0 with float32"
    assert finding.first_divergence == Divergence(None, (0, 1), "environment, default_dtype")


def test_a_setting_that_differed_before_the_loop_is_told_once() -> None:
    other = seen({}, start={**USUAL, "threads": 2})
    finding = environments_agree(ran(settings={1: other}))
    assert finding.summary == "rank 0 and rank 1 differ in threads"
    assert finding.details == ("threads: 1 on rank 0, 2 on rank 1",)


@pytest.mark.parametrize("odd", [0, 1, 2])
def test_the_odd_one_of_three_is_the_culprit(odd: int) -> None:
    finding = environments_agree(ran(3, settings={odd: seen({2: {"threads": 2}})}))
    base = 1 if odd == 0 else 0
    assert finding.summary == f"rank {odd} ran step 2 with threads 2, rank {base} with 1"
    assert len(finding.details) == 1


def test_a_rank_that_evaluates_nothing_in_a_step_is_not_compared_there() -> None:
    all_steps = seen({4: {"threads": 2}})
    fewer = replace(all_steps, looks=tuple(look for look in all_steps.looks if look[:2] != (4, VELOCITY)))
    assert environments_agree(ran(settings={0: all_steps, 1: fewer})).verdict is Verdict.PASS


def test_what_changes_on_every_rank_alike_is_told() -> None:
    changes = {step: {"default_dtype": "bfloat16", "gradients": True} for step in range(2, STEPS)}
    finding = environments_agree(ran(settings=dict.fromkeys((0, 1), seen(changes))))
    assert finding.verdict is Verdict.PASS
    assert finding.summary.endswith("equal on every rank; changed by the loop on every rank alike: default_dtype")
    assert finding.details == (
        "changed by the loop on every rank alike: default_dtype: 'float32' before the loop, 'bfloat16' from step 2 on",
    )


def test_what_spoils_everything_fails_on_every_rank_alike() -> None:
    finding = environments_agree(ran(settings=dict.fromkeys((0, 1), seen({5: {"rounding": "up"}}))))
    assert finding.verdict is Verdict.FAIL
    assert finding.summary.startswith("the loop changes rounding, on every rank alike")
    assert finding.first_divergence == Divergence(5, (0, 1), "environment, rounding")


@pytest.mark.parametrize("name", ["gradients", THREAD])
@pytest.mark.parametrize("from_the_start", [True, False])
def test_what_is_harmless_by_itself(name: str, from_the_start: bool) -> None:
    other = {name: "other"}
    settings = seen({}, start={**USUAL, **other}) if from_the_start else seen({3: other})
    finding = environments_agree(ran(settings={1: settings}))
    assert finding.verdict is Verdict.PASS
    assert finding.details == (f"settings that differ between ranks and are harmless by themselves: {name}",)


def test_a_mixed_interface_is_told_after_what_mixes_it() -> None:
    start = {"float32_matmul_precision": "highest", "backends.mkldnn.matmul.fp32_precision": "ieee"}
    mixed = {"float32_matmul_precision": MIXED, "backends.mkldnn.matmul.fp32_precision": "bf16"}
    settings = {0: seen({}, start=start), 1: seen({1: mixed}, start=start)}
    summary = environments_agree(ran(settings=settings)).summary
    assert summary == "rank 1 ran step 1 with backends.mkldnn.matmul.fp32_precision bf16, rank 0 with ieee"


def test_code_is_named_first() -> None:
    ours = Identity({"engine": "a", "my_loop.py": "a"}, {"numpy": "1"}, {"libm.so.6": "9 bytes"})
    theirs = Identity({"engine": "b", "my_loop.py": "b"}, {"numpy": "2"}, {"libm.so.6": "8 bytes"})
    traces = ran(identity={0: ours, 1: theirs})
    traces[1] = replace(traces[1], environment=traces[1].environment | {"torch": "2.0"})
    flip(traces[1].x_t, (0, 0, 0))
    finding = environments_agree(traces)
    assert finding.summary == "rank 0 and rank 1 run different sources of my_loop.py"
    assert [line.partition(":")[0] for line in finding.details] == [
        "source of my_loop.py",
        "source of engine",
        "version of numpy",
        "size of libm.so.6",
        "torch",
    ]


def test_what_only_one_rank_has_loaded_is_told_and_passes() -> None:
    finding = environments_agree(ran(identity={1: Identity({"fast_path": "a"}, {"flash-attn": "2", "rich": "1"})}))
    assert finding.verdict is Verdict.PASS
    assert finding.details == ("loaded on some ranks only: fast_path, flash-attn",)


def test_variables_nobody_knows_are_listed_beside_bits_that_differ() -> None:
    traces = ran(identity={rank: Identity(others={"SITE": f"{rank}", "SAME": "1"}) for rank in (0, 1)})
    line = "variables that differ between ranks and are not known to matter: SITE"
    finding = environments_agree(traces)
    assert finding.verdict is Verdict.PASS
    assert finding.details == (line,)
    assert finding.summary.endswith("; variables that differ and are not known to matter: SITE")
    flip(traces[1].x_t, (3, 0, 0))
    assert judged(small_request(), traces)["ranks_agree"].details[-1] == line


def test_ranks_that_never_ended_a_loop() -> None:
    ranks = [AtStart(rank, {"variables": {"MKL_CBWR": "AVX2"} if rank == 2 else {}}) for rank in range(3)]
    assert environments_at_start([]) == environments_at_start(ranks[:2]) == []
    (finding,) = environments_at_start(ranks)
    assert finding.summary == "rank 0 and rank 2 differ in MKL_CBWR, before any loop ran"
    assert (finding.verdict, finding.loop) == (Verdict.FAIL, "*")
