"""The JSON document: every report fits the schema, and the schema refuses the rest."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from example_reports import EXAMPLES, cache_write, clean, dead_and_hung, nan_payload, one_bit, passing, report

from verify.errors import BadInput
from verify.report.document import (
    build_document,
    read_document,
    schema,
    validate,
    write_document,
)
from verify.verdict import Finding, Verdict

# A GPU runner brings its own packages; this one is missing on some.
jsonschema = pytest.importorskip("jsonschema", reason="documents are checked with jsonschema")


@pytest.fixture(params=EXAMPLES)
def document(request: pytest.FixtureRequest) -> dict[str, Any]:
    return build_document(EXAMPLES[request.param]())


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())


def test_every_document_validates_and_survives_the_disk(document: dict[str, Any], tmp_path: Path) -> None:
    validate(document)
    write_document(document, tmp_path / "run.json")
    assert read_document(tmp_path / "run.json") == document
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_keys_and_order_of_the_contract() -> None:
    document = build_document(one_bit())
    assert list(document)[:12] == [
        "schema", "verdict", "target", "request", "schedule", "world_size", "backend", "device", "environment",
        "checks", "collectives", "timings",
    ]  # fmt: skip
    check = document["checks"][1]
    assert list(check)[:6] == ["name", "loop", "verdict", "summary", "compared", "first_divergence"]
    divergence = check["first_divergence"]
    assert {
        key: divergence[key] for key in ("step", "ranks", "tensor", "index", "bits", "ulp", "mismatched", "of")
    } == {
        "step": 7,
        "ranks": [0, 1],
        "tensor": "x_t",
        "index": [3, 5],
        "bits": ["0xbee00000", "0xbee00001"],
        "ulp": 1,
        "mismatched": 1,
        "of": 1024,
    }


def closed_objects() -> list[tuple[str, Callable[[dict[str, Any]], dict[str, Any]]]]:
    """Where the contract says exactly which keys there are."""
    return [
        ("$", lambda d: d),
        ("$.schedule", lambda d: d["schedule"]),
        ("$.checks[0]", lambda d: d["checks"][0]),
        ("$.checks[0].compared", lambda d: d["checks"][0]["compared"]),
        ("$.checks[0].first_divergence", lambda d: d["checks"][0]["first_divergence"]),
        ("$.failure", lambda d: d["failure"]),
        ("$.failure.ranks[0]", lambda d: d["failure"]["ranks"][0]),
    ]


def example_with(path: str) -> dict[str, Any]:
    return build_document(dead_and_hung() if "failure" in path else cache_write())


CLOSED = dict(closed_objects())
EVERY_KEY = [(path, key) for path, find in CLOSED.items() for key in find(example_with(path))]


@pytest.mark.parametrize(("path", "key"), EVERY_KEY)
def test_a_missing_key_is_refused(path: str, key: str) -> None:
    document = example_with(path)
    del CLOSED[path](document)[key]
    with pytest.raises(BadInput, match=rf"^the document at {re.escape(path.split('.f')[0])}"):
        validate(document)


@pytest.mark.parametrize("path", CLOSED)
def test_an_extra_key_is_refused(path: str) -> None:
    document = example_with(path)
    CLOSED[path](document)["surprise"] = 1
    with pytest.raises(BadInput, match="the document at "):
        validate(document)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("schema",), 2),
        (("verdict",), "passed"),
        (("world_size",), 0),
        (("backend",), "mpi"),
        (("device",), "tpu"),
        (("request", "height"), 128.5),
        (("request", "cfg_interval"), [0.4]),
        (("schedule", "steps"), -1),
        (("environment", 0, "rank"), "0"),
        (("checks", 0, "verdict"), "ok"),
        (("checks", 0, "summary"), ""),
        (("checks", 0, "compared", "elements"), -1),
        (("checks", 0, "first_divergence", "step"), -2),
        (("checks", 0, "first_divergence", "ranks"), [0]),
        (("checks", 0, "first_divergence", "bits"), ["0xZZ", "0x00"]),
        (("checks", 0, "first_divergence", "values"), [1.0, None]),
        (("collectives", "local", "all_gather"), 1.5),
        (("timings", "total"), "long"),
        (("notes",), "a note"),
        (("command",), None),
    ],
)
def test_a_wrong_value_is_refused_and_placed(place: tuple[str | int, ...], value: Any) -> None:
    document = build_document(cache_write())
    holder: Any = document
    for key in place[:-1]:
        holder = holder[key]
    assert holder[place[-1]] != value
    holder[place[-1]] = value
    with pytest.raises(BadInput) as caught:
        validate(document)
    assert str(caught.value).startswith(f"the document at $.{place[0]}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("example", "changes"),
    [
        ("pass", {"checks": []}),
        ("pass", {"verdict": "fail"}),
        ("one_bit", {"verdict": "pass"}),
        ("one_bit", {"verdict": "unknown"}),
        ("dead_and_hung", {"verdict": "pass"}),
        ("dead_and_hung", {"verdict": "fail"}),
    ],
)
def test_a_verdict_that_its_checks_do_not_bear_is_refused(example: str, changes: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        validate(build_document(EXAMPLES[example]()) | changes)


def test_a_pass_that_compared_nothing_is_refused() -> None:
    document = build_document(clean())
    document["checks"][0]["compared"]["elements"] = 0
    with pytest.raises(BadInput, match=r"\$\.checks\[0\]\.compared\.elements"):
        validate(document)


def test_an_unknown_without_findings_or_failure_is_allowed() -> None:
    document = build_document(report([], notes=("NCCL needs a GPU for each of 8 ranks",), backend=""))
    validate(document)
    assert document["verdict"] == "unknown"


@pytest.mark.parametrize("value", [None, [], 3, "text", {}])
def test_what_is_no_document_is_refused(value: Any) -> None:
    with pytest.raises(BadInput, match=r"the document at \$"):
        validate(value)


def test_nan_and_infinity_survive_as_strings(tmp_path: Path) -> None:
    document = build_document(nan_payload())
    assert document["checks"][0]["first_divergence"]["values"] == ["nan", "nan"]
    finding = Finding(
        "finite",
        "local",
        Verdict.UNKNOWN,
        "evidence",
        data={"worst": [math.inf, {"deep": (-math.inf, math.nan, 0.5, 3, True, None)}]},
    )
    document = build_document(report([passing("ranks_agree", "local"), finding]))
    assert document["checks"][1]["data"] == {"worst": ["inf", {"deep": ["-inf", "nan", 0.5, 3, True, None]}]}
    validate(document)
    write_document(document, tmp_path / "run.json")
    assert "Infinity" not in (tmp_path / "run.json").read_text()


def test_building_changes_nothing() -> None:
    shown = cache_write()
    before = copy.deepcopy(shown)
    build_document(shown)["checks"][0]["details"].append("mine")
    assert shown == before


def test_names_that_no_encoding_has(tmp_path: Path) -> None:
    """File names may hold bytes that are no text; Python gives them as lone surrogates."""
    write_document(build_document(report([passing("ranks_agree", "\udcff")])), tmp_path / "run.json")
    assert read_document(tmp_path / "run.json")["checks"][0]["loop"] == "\udcff"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "expected JSON"),
        (b"\xff", "expected a readable file"),
        (b"[" * 100_000, "expected JSON"),
        (b"{}", "is a required property"),
        (None, "expected a readable file"),
    ],
)
def test_files_that_hold_no_document(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "run.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInput, match=message):
        read_document(path)
