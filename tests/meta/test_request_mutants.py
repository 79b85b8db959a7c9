"""The requests of the matrix show what one request hides: a loop that hard-codes or ignores one thing.

No processes: a loop that is wrong alike on every rank is wrong on one. What only some rank does wrong is for faults.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from request_mutants import MUTANTS, RIGHT, Loop
from torch import Tensor

from verify.bits import same_bits
from verify.ranks.group import Alone
from verify.request import DenoiseRequest
from verify.runner.requests import MATRIX, SEQUENCE, Asked, requests_of
from verify.targets.finding import find_target
from verify.targets.protocol import ModelOptions

FIRST = DenoiseRequest(num_timesteps=8)
# The cheapest first; the request that comes again shows nothing here.
ASKED = sorted(
    (asked for asked in requests_of(MATRIX, FIRST, varies_dtype=True, image=None) if not asked.again),
    key=lambda asked: asked.request.num_timesteps * len(asked.request.branches),
)


@cache
def prepared(asked: Asked) -> tuple[Any, Tensor, list[Tensor]]:
    """The denoiser, the noise, and what the reference makes of it."""
    target = find_target("builtin")
    options = ModelOptions(dtype=asked.dtype or "bfloat16")
    with torch.no_grad():
        ready = target.prepare(asked.request, options, 0, torch.device("cpu"))
        seen: list[Tensor] = []
        target.loops["reference"](
            ready.denoiser,
            asked.request,
            ready.x_0.clone(),
            Alone(),
            lambda step, x_t, state=None: seen.append(x_t.clone()),
        )
    return ready.denoiser, ready.x_0, seen


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Operators are too small to share; threads of several test processes would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def shows(loop: Loop, asked: Asked) -> bool:
    denoiser, x_0, right = prepared(asked)
    with torch.no_grad():
        found = loop.trace(denoiser, asked.request, x_0)
    return len(found) != len(right) or not all(map(same_bits, found, right))


def shown_by(loop: Loop, requests: Sequence[Asked]) -> Asked | None:
    return next((asked for asked in requests if shows(loop, asked)), None)


@pytest.mark.parametrize("name", list(MUTANTS))
def test_the_matrix_shows_it(name: str) -> None:
    assert shown_by(MUTANTS[name], ASKED) is not None


@pytest.mark.parametrize("name", list(RIGHT))
def test_a_right_loop_is_right_everywhere(name: str) -> None:
    wrong = shown_by(RIGHT[name], ASKED)
    assert wrong is None, wrong.beside(FIRST) if wrong else ""


def test_one_request_hides_most_of_them() -> None:
    """Or nobody would need a matrix."""
    first = Asked(DenoiseRequest(num_timesteps=8))
    hidden = [name for name, loop in MUTANTS.items() if not shows(loop, first)]
    assert len(hidden) > len(MUTANTS) / 2


def test_a_sequence_shows_many_of_them() -> None:
    asked = requests_of(SEQUENCE, FIRST, varies_dtype=True, image=None)[:-1]
    for name in ("text scale 4", "shift 3", "seed 0", "renorm min 0", "upper bound 1", "blocks of 64 tokens"):
        assert shown_by(MUTANTS[name], asked) is not None, name
