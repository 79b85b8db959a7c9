"""The request: what it accepts, what it says of the rest, and what follows from its fields."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
from typing import Any

import pytest
import torch
from drawn_requests import requests
from hypothesis import given, settings

from verify.bits import same_bits
from verify.errors import BadInput
from verify.request import RENORM_TYPES, DenoiseRequest
from verify.schedule import Schedule

NAN, INF = math.nan, math.inf


def made(**fields: Any) -> DenoiseRequest:
    return DenoiseRequest(**fields)


def refusal(**fields: Any) -> str:
    with pytest.raises(BadInput) as caught:
        DenoiseRequest(**fields)
    return str(caught.value)


def test_defaults_are_those_of_bagel() -> None:
    request = DenoiseRequest()
    assert request.to_dict() == {
        "height": 128,
        "width": 128,
        "num_timesteps": 50,
        "timestep_shift": 3.0,
        "cfg_interval": [0.4, 1.0],
        "cfg_text_scale": 4.0,
        "cfg_img_scale": 1.0,
        "cfg_renorm_type": "global",
        "cfg_renorm_min": 0.0,
        "seed": 0,
    }
    assert (request.grid, request.tokens, request.branches) == ((8, 8), 64, ("gen", "text"))


@pytest.mark.parametrize(
    ("field", "least", "greatest"),
    [("height", 16, 4096), ("width", 16, 4096), ("num_timesteps", 2, 1000), ("seed", 0, 2**63 - 1)],
)
def test_integers(field: str, least: int, greatest: int) -> None:
    for value in (least, greatest):
        assert getattr(made(**{field: value}), field) == value
    bad: object
    for bad in (least - 1, greatest + 1, -least - 1, 10**400, 32.0, "32", None, True, NAN, [32]):
        shown = repr(bad)
        shown = shown if len(shown) <= 120 else shown[:117] + "..."
        assert refusal(**{field: bad}) == (
            f"{field} is {shown}, expected an integer from {least} to {greatest}; choose one in that range"
        )


@pytest.mark.parametrize(
    ("field", "least", "greatest", "shown"),
    [
        ("timestep_shift", 1e-3, 1e3, "0.001 to 1000"),
        ("cfg_text_scale", 1.0, 1e3, "1 to 1000"),
        ("cfg_img_scale", 1.0, 1e3, "1 to 1000"),
        ("cfg_renorm_min", 0.0, 1.0, "0 to 1"),
    ],
)
def test_numbers(field: str, least: float, greatest: float, shown: str) -> None:
    for value in (least, greatest, int(greatest)):
        kept = getattr(made(**{field: value}), field)
        assert (kept, type(kept)) == (value, float)
    bad: object
    below, above = math.nextafter(least, -INF), math.nextafter(greatest, INF)
    for bad in (below, above, -1.0, NAN, INF, -INF, True, "2", None, 1j, [2.0]):
        assert refusal(**{field: bad}) == (
            f"{field} is {bad!r}, expected a number from {shown}; choose one in that range"
        )


def test_a_number_no_float_can_hold_is_refused_like_any_other() -> None:
    assert refusal(timestep_shift=10**400).startswith("timestep_shift is 1000")
    assert refusal(timestep_shift=10**5000) == (
        "timestep_shift is <int that cannot be shown>, expected a number from 0.001 to 1000; choose one in that range"
    )


@pytest.mark.parametrize(("side", "lower", "upper"), [(17, 16, 32), (130, 128, 144), (4095, 4080, 4096)])
@pytest.mark.parametrize("field", ["height", "width"])
def test_sides_are_multiples_of_16(field: str, side: int, lower: int, upper: int) -> None:
    said = refusal(**{field: side})
    assert said == f"{field} is {side}, expected a multiple of 16 pixels; use {lower} or {upper}"
    for fix in (lower, upper):
        assert getattr(made(**{field: fix}), field) == fix


def test_intervals() -> None:
    for good in [(0.0, 1.0), (0.0, 0.0), (1.0, 1.0), (0.25, 0.75), (0, 1)]:
        assert DenoiseRequest(cfg_interval=good).cfg_interval == good
    kept = DenoiseRequest(cfg_interval=[0, 1]).cfg_interval  # type: ignore[arg-type]
    assert isinstance(kept, tuple) and all(type(bound) is float for bound in kept)
    expected = "expected two numbers LO HI with 0 <= LO <= HI <= 1"
    for bad in [
        (0.4,),
        (0.4, 0.6, 1.0),
        (),
        0.4,
        "01",
        None,
        (True, 1.0),
        (NAN, 1.0),
        (0.0, INF),
        ("0", "1"),
        {0.4, 1},
    ]:
        assert refusal(cfg_interval=bad) == f"cfg_interval is {bad!r}, {expected}; give both bounds"
    for bad in [(1.0, 0.4), (-0.1, 1.0), (0.0, 1.1), (2, 3), (0, 10**400)]:
        assert refusal(cfg_interval=bad).endswith(f"{expected}; order the bounds within [0, 1]")


@pytest.mark.parametrize("bad", ["Global", "", "text", None, 0, ["global"], torch.zeros(2)])
def test_renorm_types(bad: object) -> None:
    said = refusal(cfg_renorm_type=bad)
    assert said.startswith("cfg_renorm_type is ")
    assert said.endswith(", expected one of global, channel, text_channel; choose one")
    assert [DenoiseRequest(cfg_renorm_type=good).cfg_renorm_type for good in RENORM_TYPES] == list(RENORM_TYPES)  # type: ignore[arg-type]


def test_image_guidance_needs_text_guidance() -> None:
    assert refusal(cfg_text_scale=1.0, cfg_img_scale=1.5) == (
        "cfg_img_scale is 1.5, expected 1.0 when cfg_text_scale is 1.0, because Bagel guides by the image only on top "
        "of the text; raise cfg_text_scale above 1.0 or leave cfg_img_scale at 1.0"
    )


def test_branches_follow_from_the_scales() -> None:
    just_above = math.nextafter(1.0, 2.0)
    assert DenoiseRequest(cfg_text_scale=1.0).branches == ("gen",)
    assert DenoiseRequest(cfg_text_scale=just_above).branches == ("gen", "text")
    assert DenoiseRequest(cfg_img_scale=just_above).branches == ("gen", "text", "img")


def test_without_guidance_no_step_is_guided() -> None:
    assert DenoiseRequest(cfg_text_scale=1.0).schedule.guided_steps == 0
    assert DenoiseRequest().schedule.guided_steps == 41


def test_grid_is_rows_by_columns() -> None:
    request = DenoiseRequest(height=32, width=64)
    assert (request.grid, request.tokens) == ((2, 4), 8)


def test_frozen() -> None:
    request = DenoiseRequest()
    for field in dataclasses.fields(request):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(request, field.name, getattr(request, field.name))
    with pytest.raises(dataclasses.FrozenInstanceError):
        request.anything = 1  # type: ignore[attr-defined]


def test_equal_fields_are_equal_requests() -> None:
    """As dictionary keys they decide what a rank may keep."""
    a, b = DenoiseRequest(cfg_text_scale=4), DenoiseRequest(cfg_interval=[0.4, 1])  # type: ignore[arg-type]
    assert a == b and hash(a) == hash(b)
    assert a != DenoiseRequest(seed=1)


def test_the_schedule_is_made_once() -> None:
    request = DenoiseRequest()
    assert request.schedule is request.schedule


def test_on_places_the_schedule_and_changes_nothing_else() -> None:
    request = DenoiseRequest(num_timesteps=5, seed=7)
    placed = request.on(torch.device("meta"))
    assert placed.to_dict() == request.to_dict()
    assert placed.schedule.dts.device.type == "meta"
    assert (placed.schedule.timesteps, placed.schedule.guided) == (request.schedule.timesteps, request.schedule.guided)
    assert request.schedule.dts.device.type == "cpu"
    assert same_bits(request.on(torch.device("cpu")).schedule.dts, request.schedule.dts)


def test_a_request_travels() -> None:
    request = DenoiseRequest(num_timesteps=5)
    assert request.schedule.steps == 4
    arrived = pickle.loads(pickle.dumps(request))
    assert arrived == request
    assert same_bits(arrived.schedule.dts, request.schedule.dts)


@settings(max_examples=60, deadline=None)
@given(requests)
def test_every_value_in_range_makes_a_request_that_json_holds(request: DenoiseRequest) -> None:
    said = json.loads(json.dumps(request.to_dict(), allow_nan=False))
    assert DenoiseRequest(**said) == request
    assert request.schedule.steps == request.num_timesteps - 1
    assert request.tokens == request.height * request.width // 256


def test_requests_with_other_schedules_or_branches_are_not_equal() -> None:
    request = DenoiseRequest(num_timesteps=5)
    own = request.schedule
    resolved = request.resolved()
    assert resolved == request.resolved()
    assert hash(resolved) == hash(request.resolved())
    assert resolved != request.resolved(Schedule(own.timesteps, 2 * own.dts, own.guided))
    assert resolved != request.resolved(branches=("gen", "other"))
    assert dataclasses.replace(resolved, cfg_text_scale=2.0).schedule is resolved.schedule
