"""The samplers of tests/examples/samplers.py, with ranks as threads: what is right passes, each bug is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from in_threads import Notes, on_every_rank
from traces import evidence

from verify.checks.judging import LoopRun, judge
from verify.protocols import Group
from verify.ranks.group import Alone
from verify.request import DenoiseRequest
from verify.targets.loading import load_file
from verify.targets.protocol import ModelOptions, understood
from verify.trace.caches import CacheWatch
from verify.trace.latents import each
from verify.trace.recorder import Recorder
from verify.trace.sampling import SamplerWatch
from verify.trace.trace import Trace
from verify.verdict import Finding, Verdict

SAMPLERS = load_file("--target", str(Path(__file__).parents[2] / "examples" / "samplers.py"))
CPU = torch.device("cpu")
# What these traces hold nothing for.
_UNSEEN = {"environments_agree", "state_frozen", "not_vacuous", "sent_as_computed", "collectives"}


def traced(target: Any, group: Group, name: str) -> Trace:
    request = understood(target, DenoiseRequest(num_timesteps=8))
    prepared = target.prepare(request, ModelOptions(), group.rank, CPU)
    sampler = SamplerWatch(request.schedule, CPU, prepared.input, prepared.state)
    recorder = Recorder(
        prepared.denoiser, group, prepared.x_0, request, CacheWatch(prepared.caches), Notes(), sampler=sampler
    )
    sampler.loop_begins()
    x_0 = each(prepared.x_0, torch.clone)
    with torch.no_grad():
        final = target.loop(recorder.denoiser, request, x_0, recorder.group, recorder.observe)
    return recorder.trace(name, final, 0.1, {})


def findings(name: str) -> dict[str, Finding]:
    target = getattr(SAMPLERS, name)()
    request = understood(target, DenoiseRequest(num_timesteps=8))
    reference = traced(target, Alone(), "reference")
    traces = on_every_rank(2, lambda group: traced(target, group, "parallel"))
    found = judge(request, {"parallel": LoopRun(traces, target.expects["parallel"])}, evidence(reference))
    return {finding.name: finding for finding in found}


@pytest.mark.parametrize("name", ["Heun", "Stochastic", "Skipping", "Sounding"])
def test_a_right_sampler_passes(name: str) -> None:
    wrong = {n: f.summary for n, f in findings(name).items() if f.verdict is not Verdict.PASS and n not in _UNSEEN}
    assert wrong == {}


@pytest.mark.parametrize(
    ("name", "tensor", "step"),
    [
        ("HeunElsewhere", "state x_t of evaluation 2", 2),
        ("OwnSeeds", "x_t", 0),
        ("WrongHistory", "state history[1]", 2),
        ("OffKey", "x_t of audio", 3),
    ],
)
def test_a_bug_is_placed(name: str, tensor: str, step: int) -> None:
    found = findings(name)
    for check in ("ranks_agree", "matches_reference"):
        first = found[check].first_divergence
        assert first is not None
        assert (first.tensor, first.step, first.ranks[1]) == (tensor, step, 1)


def test_the_generator_behind_a_difference_is_named() -> None:
    finding = findings("OwnSeeds")["ranks_agree"]
    assert finding.details[0] == (
        "cause: rank 0 of parallel and rank 1 of parallel drew from generator noise in step 0, and its state is not "
        "the same on the two since step 0"
    )


def test_what_only_one_latent_shows_is_named_with_its_index() -> None:
    first = findings("OffKey")["ranks_agree"].first_divergence
    assert first is not None
    assert first.difference is not None
    assert (first.difference.index, first.difference.ulp, first.difference.of) == ((2,), 1, 5)


def test_a_second_evaluation_is_not_taken_for_another_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undeclared, it is what it looks like: an evaluation at an x_t that nobody was shown."""
    monkeypatch.setattr(SAMPLERS.Heun, "schedule", SAMPLERS.Engine.schedule)
    found = findings("Heun")
    assert found["observed"].verdict is Verdict.FAIL
    assert found["parallelism_engaged"].verdict is Verdict.FAIL


def test_a_rank_that_skips_alone_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """With threads nobody hangs: the rank that answers from its cache makes no gather, and neither does the other."""
    monkeypatch.setattr(SAMPLERS.Skipping, "little", lambda self, rank, step: step == 4)
    wrong = SAMPLERS.Skipping()
    request = understood(wrong, DenoiseRequest(num_timesteps=8))
    traces = on_every_rank(2, lambda group: traced(wrong, group, "parallel"))
    monkeypatch.undo()
    reference = traced(SAMPLERS.Skipping(), Alone(), "reference")
    found = {f.name: f for f in judge(request, {"parallel": LoopRun(traces, "local")}, evidence(reference))}
    assert found["parallelism_engaged"].summary == "rank 0 evaluated cond, expected nothing in step 2 (guided)"


def test_what_draws_and_is_thrown_away_is_told_and_fails_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Throwing(SAMPLERS.Stochastic):  # type: ignore[name-defined, misc]
        def remembered(self, v: torch.Tensor, rank: int, step: int) -> torch.Tensor:
            return v

        def loop(self, denoiser: Any, request: Any, x_0: Any, group: Any, observe: Any) -> Any:
            own = torch.Generator().manual_seed(group.rank)

            def shown(step: int, x_t: Any, state: Any) -> None:
                torch.rand(1, generator=own)
                observe(step, x_t, {**state, "spare": own})

            return super().loop(denoiser, request, x_0, group, shown)

    monkeypatch.setattr(SAMPLERS, "Throwing", Throwing, raising=False)
    finding = findings("Throwing")["ranks_agree"]
    assert finding.verdict is Verdict.PASS
    assert finding.details == (
        "no x_t depends on generator spare, which differs between rank 0 and rank 1 since step 0",
    )


class Asking(SAMPLERS.Heun):  # type: ignore[name-defined, misc]
    """Rank 1 asks for another timestep in step 3, at its first or its second evaluation."""

    at: tuple[int, float] = (0, 0.0)

    def guided(self, denoiser: Any, request: Any, group: Any, x_t: Any, **asked: Any) -> Any:
        if group.rank == 1 and asked["t"] == self.at[1]:
            asked["t"] = 0.25
        return super().guided(denoiser, request, group, x_t, **asked)


@pytest.mark.parametrize(
    ("t", "said"),
    [
        (1 - 3 / 8, "rank 1 asked the network for t = 0.25 in step 2, at evaluation 2 of uncond, expected 0.625"),
        (1.0, "rank 1 asked the network for t = 0.25 in step 0, expected 1.0"),
    ],
)
def test_what_the_network_is_asked_for_is_compared(t: float, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SAMPLERS, "Asking", Asking, raising=False)
    monkeypatch.setattr(Asking, "at", (0, t))
    assert findings("Asking")["schedule"].summary == said
