"""Replayed forward passes: same bits as eager ones, and a recording that is not is seen. The graphs here are fakes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from verify.bagel.config import preset
from verify.bagel.denoiser import BagelDenoiser, initial_noise
from verify.bagel.graphs import GraphedDenoiser, Graphs, Recording, Replay, Work, unlike
from verify.bagel.weights import build_model
from verify.bits import same_bits
from verify.loops import reference
from verify.ranks.group import Alone
from verify.request import DenoiseRequest

REQUEST = DenoiseRequest(height=32, width=32, num_timesteps=6, cfg_img_scale=1.5)


@pytest.fixture(scope="module")
def denoiser() -> BagelDenoiser:
    return BagelDenoiser(build_model(preset("tiny").config, torch.float32, torch.device("cpu"), 1), REQUEST)


@pytest.fixture
def x_0() -> Tensor:
    return initial_noise(REQUEST, 16)


def recorded(work: Work) -> Replay:
    """As a graph: one output, overwritten by each replay."""
    output = work()

    def replay() -> Tensor:
        return output.copy_(work())

    return replay


def stale(work: Work) -> Replay:
    """A graph that kept copies of its inputs: every replay gives what was recorded."""
    output = work()
    return lambda: output


def off_by_a_bit(work: Work) -> Replay:
    replay = recorded(work)

    def flipped() -> Tensor:
        output = replay()
        output.view(torch.int32)[1, 1] ^= 1
        return output

    return flipped


@torch.no_grad()
def test_a_loop_over_replays_gives_the_bits_of_the_eager_one(denoiser: BagelDenoiser, x_0: Tensor) -> None:
    graphed = GraphedDenoiser(denoiser, Recording(denoiser, x_0, recorded))
    finals = [
        reference(d, REQUEST, x_0.clone(), Alone(), lambda step, x_t, state=None: None) for d in (denoiser, graphed)
    ]
    assert same_bits(*finals)
    assert not same_bits(finals[0], x_0)


@torch.no_grad()
def test_a_velocity_outlives_the_next_replay(denoiser: BagelDenoiser, x_0: Tensor) -> None:
    graphed = GraphedDenoiser(denoiser, Recording(denoiser, x_0, recorded))
    first = graphed.velocity(x_0, 0, "gen")
    kept = first.clone()
    graphed.velocity(x_0 * 2, 3, "gen")
    assert same_bits(first, kept)


@torch.no_grad()
def test_the_latent_that_is_handed_over_is_left_alone(denoiser: BagelDenoiser, x_0: Tensor) -> None:
    graphed = GraphedDenoiser(denoiser, Recording(denoiser, x_0, recorded))
    before = x_0.clone()
    graphed.velocity(x_0 * 2, 1, "text")
    assert same_bits(x_0, before)


@torch.no_grad()
def test_a_good_recording_differs_nowhere(denoiser: BagelDenoiser, x_0: Tensor) -> None:
    assert unlike(denoiser, GraphedDenoiser(denoiser, Recording(denoiser, x_0, recorded)), x_0, 5) == []


@torch.no_grad()
def test_a_recording_that_does_not_read_its_inputs_is_seen(denoiser: BagelDenoiser, x_0: Tensor) -> None:
    found = unlike(denoiser, GraphedDenoiser(denoiser, Recording(denoiser, x_0, stale)), x_0, 5)
    assert found == [f"{branch} at step {step}" for step in (2, 4) for branch in ("gen", "text", "img")]


@torch.no_grad()
def test_one_bit_is_seen(denoiser: BagelDenoiser, x_0: Tensor) -> None:
    assert unlike(denoiser, GraphedDenoiser(denoiser, Recording(denoiser, x_0, off_by_a_bit)), x_0, 1) == [
        f"{branch} at step 0" for branch in ("gen", "text", "img")
    ]


@torch.no_grad()
def test_each_branch_is_recorded_once(denoiser: BagelDenoiser, x_0: Tensor) -> None:
    calls = []

    def counting(work: Work) -> Replay:
        calls.append(1)
        return recorded(work)

    graphed = GraphedDenoiser(denoiser, Recording(denoiser, x_0, counting))
    for step in range(3):
        graphed.velocity(x_0, step, "gen")
    assert len(calls) == 3


def refusing(work: Work) -> Replay:
    raise RuntimeError("operation not permitted when stream is capturing")


@torch.no_grad()
@pytest.mark.parametrize(
    ("capture", "replays", "told"),
    [
        (recorded, True, "are replayed from CUDA graphs, whose bits were compared"),
        (stale, False, "run eagerly: CUDA graphs gave other bits for gen at step"),
        (refusing, False, "run eagerly: no CUDA graph was recorded: operation not permitted"),
    ],
    ids=["equal", "other bits", "not recorded"],
)
def test_graphs_are_used_where_they_have_the_same_bits(
    denoiser: BagelDenoiser, x_0: Tensor, monkeypatch: pytest.MonkeyPatch, capture: Any, replays: bool, told: str
) -> None:
    monkeypatch.setattr("verify.bagel.graphs.captured", capture)
    found, note = Graphs().if_equal(denoiser, x_0, 5)
    assert isinstance(found, GraphedDenoiser) is replays
    assert told in note
    # Whoever looks for the network or the contexts finds the denoiser's own, and no trace of a rank's noise.
    assert found.model is denoiser.model and found.contexts is denoiser.contexts
    assert same_bits(found.velocity(x_0, 1, "text"), denoiser.velocity(x_0, 1, "text"))


@torch.no_grad()
def test_a_request_that_is_prepared_again_is_not_recorded_again(
    denoiser: BagelDenoiser, x_0: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def counting(work: Work) -> Replay:
        calls.append(1)
        return recorded(work)

    monkeypatch.setattr("verify.bagel.graphs.captured", counting)
    graphs = Graphs()
    first = graphs.if_equal(BagelDenoiser(denoiser.model, REQUEST), x_0, 5)[0]
    expected = first.velocity(x_0, 1, "text")
    # What a loop has left in the contexts that the graphs read does not meet the next one.
    first.contexts["text"].keys.zero_()
    again = graphs.if_equal(BagelDenoiser(denoiser.model, REQUEST), x_0, 5)[0]
    assert again is not first and len(calls) == 3
    assert same_bits(again.velocity(x_0, 1, "text"), expected)
    assert same_bits(again.contexts["text"].keys, denoiser.contexts["text"].keys)
    # A tensor that a user is shown is the one that the graph reads.
    again.contexts["text"].values.mul_(2)
    assert not same_bits(again.velocity(x_0, 1, "text"), expected)


@torch.no_grad()
def test_another_request_or_other_weights_are_recorded_anew(
    denoiser: BagelDenoiser, x_0: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("verify.bagel.graphs.captured", recorded)
    graphs = Graphs()
    graphs.if_equal(BagelDenoiser(denoiser.model, REQUEST), x_0, 5)
    wider = DenoiseRequest(height=32, width=64, num_timesteps=6, cfg_img_scale=1.5)
    others = BagelDenoiser(build_model(preset("tiny").config, torch.float32, torch.device("cpu"), 2), REQUEST)
    for other, latent in ((BagelDenoiser(denoiser.model, wider), initial_noise(wider, 16)), (others, x_0)):
        expected = other.velocity(latent, 2, "gen")
        found = graphs.if_equal(other, latent, 5)[0]
        assert isinstance(found, GraphedDenoiser) and same_bits(found.velocity(latent, 2, "gen"), expected)
