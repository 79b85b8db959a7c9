"""Windows of steps: the same verdicts and places as with every step kept, and what a trace weighs."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from recording import REQUEST, Bench
from torch import Tensor
from traces import (
    CHANNELS,
    ELEMENTS,
    STEPS,
    TOKENS,
    changed,
    clean,
    cut,
    evidence,
    extended,
    flip,
    reference,
    small_request,
)

from verify.bagel.config import preset
from verify.checks.finite import finite
from verify.checks.judging import LoopRun, judge
from verify.checks.merging import over_windows
from verify.checks.windows_agree import windows_agree
from verify.errors import BadInput
from verify.request import DenoiseRequest
from verify.runner.job import INDUCTIVE, Job
from verify.trace.trace import Trace
from verify.trace.window import Window, trace_bytes, windows_of
from verify.verdict import Compared, Finding, Verdict

TWO = small_request(2)


def test_windows_cover_every_step_once() -> None:
    assert windows_of(7, 3) == [(0, 3), (3, 6), (6, None)]
    assert windows_of(6, 3) == [(0, 3), (3, None)]
    assert windows_of(6, 9) == [(0, None)]
    for steps in range(1, 12):
        for size in range(1, 14):
            windows = windows_of(steps, size)
            assert sum(window.count(steps) for window in windows) == steps
            assert [[w.keeps(step) for w in windows].count(True) for step in range(steps)] == [1] * steps
            # A loop that takes more steps than it should is seen to.
            assert windows[-1].keeps(steps + 5)


def test_how_many_steps_a_window_keeps() -> None:
    for window in (Window(0, 3), Window(2, 5), Window(5, 6), Window(0, None), Window(4, None)):
        for steps in range(9):
            assert window.count(steps) == [window.keeps(step) for step in range(steps)].count(True), (window, steps)


def test_a_job_without_a_window_keeps_all_at_once() -> None:
    assert Job().windows == Job(window=49).windows == Job(window=1000).windows == [None]
    assert len(Job(window=10).windows) == 5
    assert " --window 10 " in Job(window=10).checked().command


@pytest.mark.parametrize("window", [0, -1, 1.5])
def test_windows_that_are_none(window: Any) -> None:
    with pytest.raises(BadInput, match=rf"^window is {window}, expected an integer from 1; give the steps"):
        Job(window=window).checked()


def test_a_window_and_the_inductive_reference_exclude_each_other() -> None:
    with pytest.raises(BadInput, match=r"^--window and --reference inductive were both given, expected one of them"):
        Job(window=3, reference=INDUCTIVE).checked()


# The recorder.


def recorded(window: Window | None) -> Trace:
    bench = Bench(window=window)
    for step in range(STEPS):
        x_t = bench.x_0 + step
        bench.denoiser.velocity(bench.x_0 if step == 0 else bench.x_0 + step - 1, step, "gen")
        bench.observe(step, x_t)
    return bench.trace(bench.x_0 + STEPS - 1)


@pytest.mark.parametrize("window", [Window(0, 3), Window(3, 6), Window(6, None), Window(2, 5), Window(9, None)])
def test_a_window_is_kept_and_every_step_watched(window: Window) -> None:
    whole, part = recorded(None), recorded(window)
    end = STEPS if window.end is None else window.end
    assert torch.equal(part.x_t, whole.x_t[window.first : end])
    assert part.x_t.shape[1:] == (TOKENS, CHANNELS)
    assert part.kept == range(window.first, window.first + len(part.x_t))
    for name in ("steps", "branches", "foreign", "collectives", "rank"):
        assert getattr(part, name) == getattr(whole, name)
    assert part.foreign == (0,) * STEPS
    assert part.start is not None and whole.start is not None
    assert torch.equal(part.start, whole.start) and torch.equal(part.final, whole.final)


def test_another_x_t_is_seen_outside_the_window_too() -> None:
    bench = Bench(window=Window(0, 1))
    for step in range(STEPS):
        bench.denoiser.velocity(bench.x_0 + (step == 5), step, "gen")
        bench.observe(step, bench.x_0)
    assert bench.trace().foreign == (0, 0, 0, 0, 0, ELEMENTS, 0)


def test_memory_is_that_of_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the window: where the loop began and the x_t last seen."""
    bench = Bench(window=Window(2, 5))
    kept = []
    for step in range(STEPS):
        bench.observe(step, bench.x_0)
        kept.append(len(bench.recorder._x_t))
    assert kept == [0, 0, 1, 2, 3, 3, 3]


# The checks.


def windowed(traces: Sequence[Trace], window: Window) -> list[Trace]:
    """What a recorder that keeps a window would have brought back."""
    return [
        replace(trace, x_t=trace.x_t[window.first : window.end], first=window.first, taken=trace.steps)
        for trace in traces
    ]


def in_full(request: DenoiseRequest, runs: dict[str, list[Trace]], right: Trace) -> list[Finding]:
    return judge(request, {name: LoopRun(traces, "local") for name, traces in runs.items()}, evidence(right))


def in_windows(request: DenoiseRequest, runs: dict[str, list[Trace]], right: Trace, size: int) -> list[Finding]:
    passes = []
    for window in windows_of(request.schedule.steps, size):
        parts = {name: windowed(traces, window) for name, traces in runs.items()}
        passes.append(in_full(request, parts, windowed([right], window)[0]))
    return over_windows(passes)


def test_a_rank_behind_one_that_took_no_step_of_the_window_is_looked_at() -> None:
    short, other = clean(TWO)
    long = extended(other)
    long.x_t[STEPS, 2, 1] = torch.nan
    finding = finite(windowed([short, long], Window(STEPS, None)))
    assert finding.verdict is Verdict.FAIL
    assert finding.summary == f"rank 1 holds nan in x_t[2, 1] after step {STEPS}"


Damage = Callable[[list[Trace]], list[Trace]]


def bit(rank: int, step: int, index: int = 0) -> Damage:
    def damage(traces: list[Trace]) -> list[Trace]:
        flip(traces[rank].x_t, (step, index, 0))
        return traces

    return damage


def lasting(step: int) -> Damage:
    """From a step on, as a wrong x_t stays wrong; and what the loop returned."""

    def damage(traces: list[Trace]) -> list[Trace]:
        for later in range(step, STEPS):
            flip(traces[1].x_t, (later, 0, 0))
        flip(traces[1].final, (0, 0))
        return traces

    return damage


def start(traces: list[Trace]) -> list[Trace]:
    assert traces[1].start is not None
    flip(traces[1].start, (2, 0))
    return traces


def final(traces: list[Trace]) -> list[Trace]:
    flip(traces[1].final, (2, 0))
    return traces


def nan(traces: list[Trace]) -> list[Trace]:
    traces[0].x_t[5, 1, 1] = float("nan")
    return traces


def two_kinds(traces: list[Trace]) -> list[Trace]:
    return nan(bit(1, 1)(traces))


def foreign(traces: list[Trace]) -> list[Trace]:
    return changed(traces, 1, foreign=(0, 0, 0, 0, 3, 0, 0))


DAMAGES: dict[str, Damage] = {
    "none": lambda traces: traces,
    **{f"bit of rank {rank} after step {step}": bit(rank, step) for rank in (0, 1) for step in range(STEPS)},
    **{f"from step {step} on": lasting(step) for step in (0, 3, 6)},
    "start": start,
    "final": final,
    "nan": nan,
    "a bit early and a NaN late": two_kinds,
    "evaluated elsewhere": foreign,
    "a step short": lambda traces: [traces[0], cut(traces[1], STEPS - 1)],
    "half": lambda traces: [traces[0], cut(traces[1], 3)],
    "half, and a NaN on the other": lambda traces: [nan(traces)[0], cut(traces[1], 3)],
    "a step more": lambda traces: [extended(trace) for trace in traces],
    "a bit, then a step short": lambda traces: [bit(0, 2)(traces)[0], cut(traces[1], 4)],
}


@pytest.mark.parametrize("size", [1, 3, 6, 7])
@pytest.mark.parametrize("name", DAMAGES)
def test_windows_find_what_full_traces_show(name: str, size: int) -> None:
    runs = {"local": DAMAGES[name](clean(TWO)), "other": clean(TWO, loop="other")}
    full = in_full(TWO, runs, reference(TWO))
    parts = in_windows(TWO, runs, reference(TWO), size)
    assert [(f.name, f.loop) for f in parts] == [(f.name, f.loop) for f in full]
    for part, whole in zip(parts, full, strict=True):
        assert (part.verdict, part.summary) == (whole.verdict, whole.summary), part.name
        # As text: a NaN is not equal to itself.
        assert repr(part.first_divergence) == repr(whole.first_divergence), part.name
        uneven = "short" in name or "half" in name
        if uneven and part.name == "observed":
            # A rank that ends early is looked at in another pass than the one that is told; less is claimed than done.
            assert part.compared.elements <= whole.compared.elements
        else:
            assert part.compared == whole.compared, part.name
        if "pairs" in whole.data and not uneven:
            assert part.data["pairs"] == whole.data["pairs"]


# That all passes computed the same.


def test_passes_that_repeat_themselves() -> None:
    compared = Compared(STEPS, 2 * 2 * 2 * ELEMENTS)
    assert windows_agree([clean(TWO), clean(TWO), clean(TWO)]) == Finding(
        "windows_agree", "local", Verdict.PASS, "3 passes began and ended with the same bytes", compared
    )


def test_passes_of_one_rank() -> None:
    one = small_request(1)
    assert windows_agree([clean(one, loop="own"), clean(one, loop="own")]) == Finding(
        "windows_agree",
        "own",
        Verdict.PASS,
        "2 passes began and ended with the same bytes",
        Compared(STEPS, 2 * ELEMENTS),
    )


def test_a_pass_without_one_of_the_ranks_is_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        windows_agree([clean(TWO), clean(TWO)[:1]])


def other_final(trace: Trace) -> Trace:
    changed_final: Tensor = trace.final.clone()
    flip(changed_final, (0, 0))
    return replace(trace, final=changed_final)


@pytest.mark.parametrize("damage", [other_final, lambda t: replace(t, start=None), lambda t: replace(t, taken=3)])
@pytest.mark.parametrize("at", [1, 2])
def test_a_pass_that_computed_otherwise_is_unknown(damage: Callable[[Trace], Trace], at: int) -> None:
    passes = [clean(TWO) for _ in range(3)]
    passes[at][1] = damage(passes[at][1])
    summary = (
        f"rank 1 of local computed otherwise in pass {at} than in pass 0: the loop does not repeat itself, so its "
        "windows are not those of one run; judge it without --window"
    )
    compared = Compared(STEPS, 2 * 2 * 2 * ELEMENTS)
    assert windows_agree(passes) == Finding("windows_agree", "local", Verdict.UNKNOWN, summary, compared)


def test_one_pass_has_no_other_to_agree_with() -> None:
    summary = "one pass has no other to agree with"
    compared = Compared(STEPS, 0)
    assert windows_agree([clean(TWO)]) == Finding("windows_agree", "local", Verdict.UNKNOWN, summary, compared)


# What a trace weighs.


def test_the_trace_of_a_7b_run_is_about_50_MB() -> None:
    side = preset("7b").side
    request = DenoiseRequest(height=side, width=side)
    assert trace_bytes(request, preset("7b").config.latent_channels) == 51 * 4096 * 64 * 4 == 53_477_376
    assert trace_bytes(request, 64, window=10) == 12 * 4096 * 64 * 4


def test_the_scale_that_is_written_down() -> None:
    """The scale in RESULTS.md gives numbers; they are the code's."""
    text = (Path(__file__).parents[3] / "RESULTS.md").read_text(encoding="utf-8")
    (told,) = re.findall(r"^At 50 timesteps that is (.*), with `--window 10` a quarter of it", text, re.M)
    sizes = re.findall(r"([\d.]+)(?: MB)? at (\d+)²", told)
    assert len(sizes) == 4
    for megabytes, side in sizes:
        request = DenoiseRequest(height=int(side), width=int(side))
        assert float(megabytes) == round(trace_bytes(request, 64) / 1e6, 1)
        assert trace_bytes(request, 64, window=10) / trace_bytes(request, 64) == pytest.approx(0.25, abs=0.02)


def test_the_weight_is_that_of_a_trace() -> None:
    trace = recorded(None)
    assert trace.start is not None
    weighed = trace.start.nbytes + trace.x_t.nbytes + trace.final.nbytes
    # The bench's latents are not the request's: weigh one element each, then scale.
    assert weighed == (STEPS + 2) * ELEMENTS * 4
    assert trace_bytes(REQUEST, 1) * ELEMENTS == weighed * REQUEST.tokens
