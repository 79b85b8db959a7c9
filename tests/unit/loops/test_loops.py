"""The loops, with ranks as threads: what they compute, and that they do what the schedule expects of them."""

from __future__ import annotations

import pytest
import torch
from in_threads import LinearDenoiser, Notes, on_every_rank
from torch import Tensor
from traces import CHANNELS, GUIDED_STEPS, STEPS, TOKENS, evidence, small_request

from verify.bits import same_bits
from verify.checks.judging import LoopRun, judge
from verify.combine import combine_cfg
from verify.expected import LOOP_KINDS, expected_work
from verify.loops import LOOPS
from verify.loops.guidance import guide
from verify.protocols import Group
from verify.ranks.group import Alone
from verify.request import DenoiseRequest
from verify.schedule import Schedule
from verify.trace.caches import CacheWatch
from verify.trace.recorder import Recorder
from verify.trace.state import StateWatch
from verify.trace.trace import Trace
from verify.verdict import Verdict

DTYPES = [torch.float32, torch.bfloat16]
WORLDS = [("broadcast", 2, 2), ("local", 2, 2), ("broadcast", 3, 3), ("local", 3, 3)]
WORLDS += [("round_robin", branches, ranks) for branches in (2, 3) for ranks in (1, 2, 3, 4)]


def noise(rank: int) -> Tensor:
    """Another one on every rank, as the contract says."""
    return torch.randn(TOKENS, CHANNELS, generator=torch.Generator().manual_seed(rank))


def record(kind: str, request: DenoiseRequest, group: Group, dtype: torch.dtype) -> Trace:
    denoiser = LinearDenoiser(request.branches, dtype)
    caches = {branch: {"context": tensor} for branch, tensor in denoiser.contexts.items()}
    x_0 = noise(group.rank)
    recorder = Recorder(denoiser, group, x_0, request, CacheWatch(caches), Notes(), state=StateWatch(denoiser))
    final, seconds = recorder.run(lambda d, g, observe: LOOPS[kind](d, request, x_0.clone(), g, observe))
    return recorder.trace(kind, final, seconds, {"torch": torch.__version__})


def alone(request: DenoiseRequest, dtype: torch.dtype) -> Trace:
    with torch.no_grad():
        return record("reference", request, Alone(), dtype)


def test_every_version_has_a_loop() -> None:
    # A reducing loop has no renorm: none is built in.
    assert (*LOOPS, "reduce") == LOOP_KINDS


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("branches", [1, 2, 3])
def test_the_reference_is_euler_on_the_combined_velocity(branches: int, dtype: torch.dtype) -> None:
    request = small_request(branches, cfg_renorm_min=0.25)
    trace, denoiser = alone(request, dtype), LinearDenoiser(request.branches, dtype)
    x_t = noise(0)
    for step in range(STEPS):
        v_t = denoiser.velocity(x_t, step, "gen")
        if branches > 1 and step < GUIDED_STEPS:
            text = denoiser.velocity(x_t, step, "text")
            img = denoiser.velocity(x_t, step, "img") if branches > 2 else None
            v_t = combine_cfg(v_t, text, img, 4.0, 1.5, "global", 0.25)
        x_t = x_t - v_t * request.schedule.dts[step]
        assert same_bits(trace.x_t[step], x_t)
    assert same_bits(trace.final, x_t) and trace.steps == STEPS


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interval", [(0.4, 1.0), (0.4, 0.99), (0.0, 1.0), (1.0, 1.0)])
@pytest.mark.parametrize(("kind", "branches", "ranks"), WORLDS)
def test_every_rank_computes_what_the_reference_does(
    kind: str, branches: int, ranks: int, interval: tuple[float, float], dtype: torch.dtype
) -> None:
    request = small_request(branches, cfg_interval=interval)
    traces = on_every_rank(ranks, lambda group: record(kind, request, group, dtype))
    reference = alone(request, dtype)
    due = expected_work(kind, request.schedule, request.branches, ranks)
    for trace in traces:
        assert same_bits(trace.x_t, reference.x_t) and same_bits(trace.final, reference.final)
        assert trace.branches == due.branches[trace.rank]
        assert tuple(tuple(c.name for c in step) for step in trace.collectives) == due.collectives
        assert trace.foreign == (0,) * STEPS
    said = judge(request, {kind: LoopRun(traces, kind)}, evidence(reference))
    assert [finding.summary for finding in said if finding.verdict is Verdict.FAIL] == []
    if ranks > 1 and any(request.schedule.guided):
        assert {finding.verdict for finding in said} == {Verdict.PASS}


@pytest.mark.parametrize(("kind", "branches", "ranks"), [("broadcast", 2, 2), ("local", 3, 3), ("round_robin", 3, 2)])
def test_a_loop_is_judged_by_the_work_of_its_own_version_only(kind: str, branches: int, ranks: int) -> None:
    request = small_request(branches)
    traces = on_every_rank(ranks, lambda group: record(kind, request, group, torch.float32))
    for other in LOOP_KINDS[1:-1]:
        fits = other == "round_robin" or ranks == branches
        # With a branch a rank, one round of round_robin is what local does.
        alike = other == kind or ({kind, other} == {"local", "round_robin"} and ranks == branches)
        if fits:
            verdicts = {f.name: f.verdict for f in judge(request, {kind: LoopRun(traces, other)}, evidence())}
            assert verdicts["collectives"] is (Verdict.PASS if alike else Verdict.FAIL)


def test_only_rank_0_of_broadcast_computes_outside_the_interval() -> None:
    request = small_request(2, cfg_interval=(1.0, 1.0))
    first, second = on_every_rank(2, lambda group: record("broadcast", request, group, torch.float32))
    assert (first.branches, second.branches) == ((("gen",),) * STEPS, ((),) * STEPS)
    assert first.start is not None and second.start is None
    assert same_bits(first.x_t, second.x_t)


@pytest.mark.parametrize("kind", list(LOOPS))
def test_loops_use_the_step_sizes_they_are_given(kind: str) -> None:
    """Where a step size lies decides bits, so a loop may not make its own."""
    request, ranks = small_request(2), 1 if kind == "reference" else 2
    own = request.schedule
    doubled = request.resolved(Schedule(own.timesteps, 2 * own.dts, own.guided))
    given, other = (
        on_every_rank(ranks, lambda group, r=r: record(kind, r, group, torch.float32))  # type: ignore[misc]
        for r in (request, doubled)
    )
    assert not same_bits(given[0].x_t, other[0].x_t)


@pytest.mark.parametrize("img", [False, True])
def test_guide_combines_in_the_order_of_the_branches(img: bool) -> None:
    request = small_request(3 if img else 2, cfg_renorm_type="text_channel", cfg_renorm_min=0.125)
    velocities = [noise(seed) for seed in range(2 + img)]
    expected = combine_cfg(
        velocities[0], velocities[1], velocities[2] if img else None, 4.0, request.cfg_img_scale, "text_channel", 0.125
    )
    assert same_bits(guide(request, velocities), expected)
    assert not same_bits(guide(request, velocities[::-1]), expected)
