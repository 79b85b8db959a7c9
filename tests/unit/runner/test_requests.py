"""The sets of requests: what a sequence changes, and that the matrix covers every pair of classes of values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from itertools import combinations, product

import pytest
import torch

from verify.errors import BadInput
from verify.request import DenoiseRequest
from verify.runner.requests import (
    MATRIX,
    ONE,
    PARAMETERS,
    SEQUENCE,
    Asked,
    matrix,
    neighbours,
    requests_of,
    sequence_of,
)

DEFAULT = DenoiseRequest()
# The classes of values that must meet in pairs. What belongs to no class stands apart: equal bounds guide no step, so
# that nothing else could be seen to matter beside them.
CLASSES: dict[str, dict[str, Callable[[Asked], bool]]] = {
    "renorm type": {
        "global": lambda a: a.request.cfg_renorm_type == "global",
        "channel": lambda a: a.request.cfg_renorm_type == "channel",
        "text_channel": lambda a: a.request.cfg_renorm_type == "text_channel",
    },
    "image": {
        "none": lambda a: a.request.cfg_img_scale == 1.0,
        "1.5": lambda a: a.request.cfg_img_scale == 1.5,
        "another": lambda a: a.request.cfg_img_scale not in (1.0, 1.5),
    },
    "renorm min": {
        "0": lambda a: a.request.cfg_renorm_min == 0.0,
        "in between": lambda a: 0.0 < a.request.cfg_renorm_min < 1.0,
        "1": lambda a: a.request.cfg_renorm_min == 1.0,
    },
    "text scale": {
        "low": lambda a: a.request.cfg_text_scale <= 1.5,
        "4": lambda a: a.request.cfg_text_scale == 4.0,
        "another": lambda a: a.request.cfg_text_scale > 1.5 and a.request.cfg_text_scale != 4.0,
    },
    "shift": {
        "1": lambda a: a.request.timestep_shift == 1.0,
        "3": lambda a: a.request.timestep_shift == 3.0,
        "another": lambda a: a.request.timestep_shift not in (1.0, 3.0),
    },
    "interval": {
        "default": lambda a: a.request.cfg_interval == (0.4, 1.0),
        "upper bound below 1": lambda a: a.request.cfg_interval[1] < 1.0,
        "lower bound 0": lambda a: a.request.cfg_interval[0] == 0.0,
    },
    "length": {
        "few": lambda a: a.request.num_timesteps < 8,
        "a dozen": lambda a: 8 <= a.request.num_timesteps <= 16,
        "more than 64 steps": lambda a: a.request.num_timesteps > 65,
    },
    "tokens": {
        "below 64": lambda a: a.request.tokens < 64,
        "above 64": lambda a: a.request.tokens > 64,
    },
    "dtype": {
        "half": lambda a: a.dtype in ("bfloat16", "float16"),
        "full": lambda a: a.dtype in ("float32", "float64"),
    },
}
ROWS = [row for row in matrix() if row.request.cfg_interval[0] < row.request.cfg_interval[1]]


@pytest.mark.parametrize(("one", "other"), list(combinations(CLASSES, 2)))
def test_every_two_classes_meet(one: str, other: str) -> None:
    for a, b in product(CLASSES[one], CLASSES[other]):
        met = [row for row in ROWS if CLASSES[one][a](row) and CLASSES[other][b](row)]
        assert met, f"no row has {one} {a} and {other} {b}"


@pytest.mark.parametrize("parameter", list(CLASSES))
def test_every_row_is_in_one_class(parameter: str) -> None:
    for row in ROWS:
        assert sum(belongs(row) for belongs in CLASSES[parameter].values()) == 1, row.beside(DEFAULT)


def test_rows_guide_steps_unless_their_bounds_are_equal() -> None:
    assert all(row.request.schedule.guided_steps for row in ROWS)
    (equal,) = [row for row in matrix() if row not in ROWS]
    assert equal.request.schedule.guided_steps == 0
    assert len(matrix()) == 13


def test_what_stands_out() -> None:
    """Values that engines have stumbled over, each somewhere in the matrix."""
    requests = [row.request for row in ROWS]
    assert len({r.seed for r in requests}) == len(requests)
    assert any(r.seed >= 2**32 for r in requests)
    assert any(r.tokens % 2 and r.tokens > 64 for r in requests)
    assert any(r.tokens > 128 for r in requests)
    assert all(r.tokens % 64 for r in requests)
    assert any(r.height != r.width for r in requests)
    assert {"float16", "float64"} < {row.dtype for row in ROWS}
    assert any(r.timestep_shift < 1 for r in requests)
    assert any(0 < sum(r.schedule.guided) < r.schedule.steps for r in requests)


def on_bound(request: DenoiseRequest, side: int) -> list[float]:
    """The steps that lie on a bound, as float32 has it."""
    bound = request.cfg_interval[side]
    return [t for t in request.schedule.timesteps if torch.tensor(t) == torch.tensor(bound)]


@pytest.mark.parametrize("side", [0, 1])
def test_steps_lie_on_bounds_where_host_floats_judge_otherwise(side: int) -> None:
    found = [
        (row.request, t)
        for row in ROWS
        for t in on_bound(row.request, side)
        if row.request.cfg_interval[1] < 1 or not side
    ]
    assert any(t > request.cfg_interval[side] for request, t in found), "float64 puts none beyond the bound"


@pytest.mark.parametrize("image", [True, False])
def test_rows_for_ranks_of_one_kind(image: bool) -> None:
    rows = matrix(image=image)
    assert len(rows) == len(matrix())
    assert {len(row.request.branches) for row in rows} == {3 if image else 2}
    assert all(row.dtype is None for row in matrix(varies_dtype=False))


REQUESTS = [
    DEFAULT,
    DenoiseRequest(cfg_img_scale=1.5, cfg_renorm_type="text_channel", timestep_shift=2.0),
    DenoiseRequest(cfg_img_scale=2.0, cfg_text_scale=3.0, cfg_renorm_min=0.25, num_timesteps=9),
    DenoiseRequest(cfg_text_scale=1.0, seed=2**63 - 1),
    DenoiseRequest(height=144, width=112, cfg_interval=(0.0, 0.9), timestep_shift=3.0),
]


@pytest.mark.parametrize("request_", REQUESTS)
def test_a_sequence_ends_where_it_began(request_: DenoiseRequest) -> None:
    first, kept, other, again = sequence_of(request_)
    assert (first, again) == (Asked(request_), Asked(request_, again=True))
    assert len({a.request for a in (first, kept, other)}) == 3
    assert {a.request.branches for a in (first, kept, other)} == {request_.branches}
    assert (kept.request.tokens, kept.request.num_timesteps) == (request_.tokens, request_.num_timesteps)
    always = {"seed", "timestep_shift", "cfg_renorm_type", "cfg_renorm_min"}
    assert different(request_, kept.request) - {"cfg_text_scale", "cfg_img_scale"} == always
    assert different(request_, other.request) >= {"seed", "height", "num_timesteps", "cfg_interval"}
    assert different(kept.request, other.request) >= {
        "seed",
        "height",
        "num_timesteps",
        "cfg_interval",
        "timestep_shift",
    }
    assert other.request.tokens != request_.tokens
    if request_.cfg_text_scale > 1.0:
        assert kept.request.cfg_text_scale not in (1.0, request_.cfg_text_scale)


@pytest.mark.parametrize("request_", REQUESTS)
def test_a_sequence_for_any_branches(request_: DenoiseRequest) -> None:
    plain, longer = sequence_of(request_), sequence_of(request_, any_branches=True)
    added = [asked for asked in longer if asked not in plain]
    assert [asked for asked in longer if asked in plain] == list(plain)
    if request_.cfg_text_scale <= 1.0:
        assert not added
        return
    (asked,) = added
    assert asked.optional and not any(each.optional for each in plain)
    assert len(asked.request.branches) + len(request_.branches) == 5
    assert asked.request.cfg_renorm_type == request_.cfg_renorm_type
    assert asked.request.seed not in {each.request.seed for each in plain}


def test_a_sequence_has_every_renorm() -> None:
    for request_ in REQUESTS:
        assert len({asked.request.cfg_renorm_type for asked in sequence_of(request_)}) == 3


def different(a: DenoiseRequest, b: DenoiseRequest) -> set[str]:
    return {f.name for f in fields(DenoiseRequest) if getattr(a, f.name) != getattr(b, f.name)}


def test_sets() -> None:
    def asked(kind: str) -> tuple[Asked, ...]:
        return requests_of(kind, DEFAULT, varies_dtype=True, image=None)

    assert asked(ONE) == (Asked(DEFAULT),)
    assert asked(SEQUENCE) == sequence_of(DEFAULT)
    assert asked(MATRIX) == (*sequence_of(DEFAULT)[:-1], *matrix(), Asked(DEFAULT, again=True))
    with pytest.raises(BadInput, match="requests is 'two', expected one of one, sequence, matrix; choose one"):
        asked("two")


@pytest.mark.parametrize("parameter", PARAMETERS)
def test_a_neighbour_differs_in_one_parameter(parameter: str) -> None:
    field = parameter.partition(",")[0]
    made = 0
    for row in matrix():
        for changed in neighbours(row, parameter, row.request.schedule):
            made += 1
            fields_changed: set[str] = different(row.request, changed.request)
            fields_changed |= {"dtype"} if row.dtype != changed.dtype else set()
            assert fields_changed == {field}
            assert changed.request.branches == row.request.branches
            if "bound" in parameter:
                assert changed.request.schedule.guided != row.request.schedule.guided
    assert made


def test_in_words() -> None:
    other = DenoiseRequest(seed=7, height=144, width=112, cfg_img_scale=1.5, cfg_interval=(0.5, 1))
    said = Asked(other, "float32").beside(DEFAULT)
    assert said == "seed 7, 144x112, interval 0.5 to 1, image scale 1.5, float32"
    assert Asked(DEFAULT, again=True).beside(DEFAULT) == "the first one again"
