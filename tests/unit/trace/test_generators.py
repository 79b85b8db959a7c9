"""The histories of random generators, and what is said of two that are not in lockstep."""

from __future__ import annotations

import random
from typing import Any

import numpy
import pytest
import torch

from verify.trace.generators import (
    BEFORE_LOOP,
    BEFORE_PREPARING,
    CPU,
    NUMPY,
    PYTHON,
    GeneratorHistory,
    GeneratorWatch,
    state_of,
)

HOST = torch.device("cpu")


def watched(draw: Any, shown: Any = None) -> GeneratorHistory:
    """What is seen of a loop of three steps that draws in step 1."""
    watch = GeneratorWatch(HOST)
    watch.look(BEFORE_PREPARING)
    watch.look(BEFORE_LOOP)
    for step in range(3):
        if step == 1:
            draw()
        watch.look(step, shown)
    return watch.history()


@pytest.mark.parametrize(
    ("name", "draw"),
    [(PYTHON, random.random), (NUMPY, numpy.random.rand), (CPU, lambda: torch.rand(1))],
    ids=["python", "numpy", "torch"],
)
def test_a_draw_is_seen_in_its_step(name: str, draw: Any) -> None:
    history = watched(draw)
    assert [history.moved(name, step) for step in range(3)] == [False, True, False]
    assert history.moved_in_loop(name)
    assert history.at(name, 0) == history.at(name, BEFORE_LOOP) != history.at(name, 1) == history.at(name, 2)
    others = {PYTHON, NUMPY, CPU} - {name}
    assert not any(history.moved_in_loop(other) for other in others)


@pytest.mark.parametrize(
    "made",
    [
        lambda: torch.Generator().manual_seed(3),
        lambda: numpy.random.default_rng(3),
        lambda: numpy.random.RandomState(3),
        lambda: random.Random(3),
    ],
    ids=["torch", "numpy", "former numpy", "python"],
)
def test_one_that_is_shown_has_a_state_that_is_alike_in_every_process(made: Any) -> None:
    one, other = made(), made()
    assert state_of(one) == state_of(other)
    history = watched(lambda: None, {"noise": one})
    assert history.at("generator noise", BEFORE_LOOP) is None
    assert history.at("generator noise", 0) == history.at("generator noise", 2)


def test_what_is_no_generator_is_told() -> None:
    with pytest.raises(TypeError, match="a generator shown is a int, expected one of PyTorch, NumPy or Python"):
        state_of(3)
