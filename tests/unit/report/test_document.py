"""Documents: every report fits its type, types refuse the rest in one line, and the schemas that ship are theirs."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from example_documents import KINDS as EXAMPLE_DOCUMENTS
from example_documents import json_of
from example_reports import EXAMPLES, cache_write, clean, dead_and_hung, nan_payload, one_bit, passing, report

from verify.bits import first_difference
from verify.errors import BadInput
from verify.report.disk import write_document
from verify.report.documents.parts import Check, FirstDivergence
from verify.report.documents.reading import KINDS, document_of, read
from verify.report.documents.schemas import FOLDER, rendered, schema
from verify.report.sections.present import present
from verify.verdict import Compared, Divergence, Finding, Verdict

FIXTURES = sorted((Path(__file__).parents[3] / "fixtures" / "results").glob("*.json"))


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_report_survives_the_disk(name: str, tmp_path: Path) -> None:
    document = EXAMPLES[name]().document
    write_document(document, tmp_path / "run.json")
    assert read(tmp_path / "run.json") == document
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def unordered(schema: Any) -> Any:
    """The alternatives of ``anyOf`` in one order: msgspec's own has changed between its versions."""
    if isinstance(schema, dict):
        return {name: unordered(part) for name, part in schema.items()}
    return sorted((unordered(part) for part in schema), key=repr) if isinstance(schema, list) else schema


@pytest.mark.parametrize("kind", KINDS)
def test_the_schema_that_ships_is_that_of_the_type(kind: str) -> None:
    shipped, made = (json.loads(text) for text in (FOLDER.joinpath(f"{kind}.json").read_text(), rendered(kind)))
    assert unordered(shipped) == unordered(made)


@pytest.mark.parametrize("kind", EXAMPLE_DOCUMENTS)
def test_a_document_fits_the_schema_of_its_kind(kind: str) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="the schemas are for users; types do the checking here")
    jsonschema.Draft202012Validator.check_schema(schema(kind))
    jsonschema.validate(json_of(document_of(EXAMPLE_DOCUMENTS[kind])), schema(kind))


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_documents_of_the_former_schema_are_read(path: Path) -> None:
    shown = present(read(path))
    assert shown.title and shown.said and shown.sections


def test_keys_of_the_contract() -> None:
    document = json_of(one_bit().document)
    assert set(document) >= {
        "schema", "kind", "verdict", "target", "request", "schedule", "world_size", "backend", "device", "environment",
        "checks", "collectives", "timings", "command",
    }  # fmt: skip
    check = document["checks"][1]
    assert set(check) >= {"name", "loop", "verdict", "summary", "compared", "first_divergence"}
    divergence = check["first_divergence"]
    expected = {"step": 7, "ranks": (0, 1), "tensor": "x_t", "index": (3, 5), "bits": ("0xbee00000", "0xbee00001"),
                "ulp": 1, "mismatched": 1, "of": 1024}  # fmt: skip
    assert {key: divergence[key] for key in expected} == {
        key: list(value) if isinstance(value, tuple) else value for key, value in expected.items()
    }


# Where the contract says exactly which keys there are.
CLOSED: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "$": lambda d: d,
    "$.schedule": lambda d: d["schedule"],
    "$.checks[0]": lambda d: d["checks"][0],
    "$.checks[0].compared": lambda d: d["checks"][0]["compared"],
    "$.failure": lambda d: d["failure"],
    "$.failure.ranks[0]": lambda d: d["failure"]["ranks"][0],
}
OPTIONAL = {"kind", "replicas", "requests", "picture", "rounding", "awaited", "where", "schema"}


def example_with(path: str) -> dict[str, Any]:
    return json_of((dead_and_hung() if "failure" in path else cache_write()).document)


EVERY_KEY = [(path, key) for path, find in CLOSED.items() for key in find(example_with(path)) if key not in OPTIONAL]


@pytest.mark.parametrize(("path", "key"), EVERY_KEY)
def test_a_missing_key_is_refused(path: str, key: str) -> None:
    document = example_with(path)
    del CLOSED[path](document)[key]
    with pytest.raises(BadInput, match=rf"^the document at {re.escape(path)} .*`{key}`"):
        document_of(document)


@pytest.mark.parametrize("path", [*CLOSED, "$.checks[0].first_divergence"])
def test_an_extra_key_is_refused(path: str) -> None:
    document = example_with(path)
    (document["checks"][0]["first_divergence"] if path not in CLOSED else CLOSED[path](document))["surprise"] = 1
    with pytest.raises(BadInput, match=rf"^the document at {re.escape(path)} .*`surprise`"):
        document_of(document)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("verdict",), "passed"),
        (("world_size",), 0),
        (("backend",), "mpi"),
        (("device",), "tpu"),
        (("schedule", "steps"), -1),
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
    document = json_of(cache_write().document)
    holder: Any = document
    for key in place[:-1]:
        holder = holder[key]
    assert holder[place[-1]] != value
    holder[place[-1]] = value
    with pytest.raises(BadInput) as caught:
        document_of(document)
    assert str(caught.value).startswith(f"the document at $.{place[0]}")
    assert "\n" not in str(caught.value)


def test_an_environment_names_its_ranks() -> None:
    document = json_of(cache_write().document)
    document["environment"][0]["rank"] = "0"
    with pytest.raises(BadInput, match=r"environment\[0\] does not name its rank"):
        document_of(document)


@pytest.mark.parametrize("schema_", [0, 3, True, None, "2"])
def test_another_schema_is_refused(schema_: Any) -> None:
    with pytest.raises(BadInput, match=r"the document's schema is .* expected 1 or 2"):
        document_of(json_of(clean().document) | {"schema": schema_})


@pytest.mark.parametrize("schema_", [1, 2])
@pytest.mark.parametrize(
    ("example", "changes"),
    [
        ("pass", {"checks": []}),
        ("pass", {"verdict": "fail"}),
        ("pass", {"verdict": "unknown"}),
        ("one_bit", {"verdict": "pass"}),
        ("one_bit", {"verdict": "unknown"}),
        ("dead_and_hung", {"verdict": "pass"}),
        ("dead_and_hung", {"verdict": "fail"}),
        ("pass", {"failure": json_of(dead_and_hung().document)["failure"]}),
    ],
)
def test_a_verdict_that_its_checks_do_not_add_up_to_is_refused(
    example: str, changes: dict[str, Any], schema_: int
) -> None:
    document = json_of(EXAMPLES[example]().document) | changes | {"schema": schema_}
    with pytest.raises(BadInput, match=r"the document at .* add up to"):
        document_of(document)


@pytest.mark.parametrize("kind", ["fuzz", "faults"])
def test_so_is_that_of_other_kinds(kind: str) -> None:
    document = EXAMPLE_DOCUMENTS[kind]
    wrong = {"pass": "fail", "fail": "pass"}[document["verdict"]]
    with pytest.raises(BadInput, match="the verdict is"):
        document_of(document | {"verdict": wrong})


def test_a_pass_that_compared_nothing_is_refused() -> None:
    document = json_of(clean().document)
    document["checks"][0]["compared"]["elements"] = 0
    with pytest.raises(BadInput, match=r"\$\.checks\[0\] .* passed without having compared anything"):
        document_of(document)


def test_an_unknown_without_findings_or_failure_is_allowed() -> None:
    document = report([], notes=("NCCL needs a GPU for each of 8 ranks",), backend="").document
    assert document_of(json_of(document)).notes == ("NCCL needs a GPU for each of 8 ranks",)
    assert document.verdict is Verdict.UNKNOWN


@pytest.mark.parametrize("value", [None, [], 3, "text", {}])
def test_what_is_no_document_is_refused(value: Any) -> None:
    with pytest.raises(BadInput, match=r"^the document"):
        document_of(value)


def test_nan_and_infinity_survive_as_strings(tmp_path: Path) -> None:
    document = json_of(nan_payload().document)
    assert document["checks"][0]["first_divergence"]["values"] == ["nan", "nan"]
    finding = Finding(
        "finite",
        "local",
        Verdict.UNKNOWN,
        "evidence",
        data={"worst": [math.inf, {"deep": (-math.inf, math.nan, 0.5, 3, True, None)}]},
    )
    made = report([passing("ranks_agree", "local"), finding]).document
    assert made.checks[1].data == {"worst": ["inf", {"deep": ["-inf", "nan", 0.5, 3, True, None]}]}
    write_document(made, tmp_path / "run.json")
    assert read(tmp_path / "run.json") == made
    assert "Infinity" not in (tmp_path / "run.json").read_text()


def test_strings_of_other_classes_become_strings() -> None:
    """As ``torch.__version__`` is."""

    class Version(str):
        __slots__ = ()

    made = report(clean().findings, environment=[{"rank": 0, "torch": Version("2.13")}]).document
    assert type(made.environment[0]["torch"]) is str


def test_a_finding_as_json() -> None:
    difference = first_difference(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, math.nextafter(1.0, 2.0)]]))
    assert difference is None, "float32 cannot hold it"
    difference = first_difference(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 1.0 + 2**-23]]))
    divergence = Divergence(7, (0, 1), "x_t", ("local", "reference"), difference)
    finding = Finding(
        "ranks_agree", "local", Verdict.FAIL, "they differ", Compared(49, 98), divergence, ("also",), {"k": [1]}
    )
    assert json_of(Check.of(finding)) == {
        "name": "ranks_agree",
        "loop": "local",
        "verdict": "fail",
        "summary": "they differ",
        "compared": {"steps": 49, "elements": 98},
        "first_divergence": {
            "step": 7,
            "ranks": [0, 1],
            "tensor": "x_t",
            "sides": ["local", "reference"],
            "index": [0, 1],
            "bits": ["0x3f800000", "0x3f800001"],
            "values": [1.0, 1.0000001192092896],
            "ulp": 1,
            "max_ulp": 1,
            "mismatched": 1,
            "of": 2,
            "replicas": None,
        },
        "details": ["also"],
        "data": {"k": [1]},
    }


def test_a_finding_without_a_divergence_as_json() -> None:
    assert json_of(Check.of(Finding("finite", "*", Verdict.UNKNOWN, "nothing was seen"))) == {
        "name": "finite",
        "loop": "*",
        "verdict": "unknown",
        "summary": "nothing was seen",
        "compared": {"steps": 0, "elements": 0},
        "first_divergence": None,
        "details": [],
        "data": {},
    }


def test_a_divergence_without_elements() -> None:
    said = FirstDivergence.of_divergence(Divergence(None, (0, 2), "environment, torch"))
    assert said == FirstDivergence(step=None, ranks=(0, 2), tensor="environment, torch")


@pytest.mark.parametrize(
    ("values", "said"),
    [((math.nan, 1.0), ["nan", 1.0]), ((math.inf, -math.inf), ["inf", "-inf"]), ((-0.0, 0.0), [0, 0])],
)
def test_values_that_json_lacks(values: tuple[float, float], said: list[object]) -> None:
    difference = first_difference(torch.tensor([values[0]]), torch.tensor([values[1]]))
    first = FirstDivergence.of_divergence(Divergence(0, (0, 1), "x_t", difference=difference))
    assert first.values == tuple(said)


def test_building_changes_nothing() -> None:
    shown = cache_write()
    before = copy.deepcopy(shown)
    json_of(shown.document)["checks"][0]["details"].append("mine")
    assert shown == before


def test_it_says_when_and_from_what_it_was_made() -> None:
    made = clean().document.made
    assert made is not None
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\+00:00", made.date)
    assert re.fullmatch(r"[0-9a-f]{12}|", made.commit)


def test_names_that_no_encoding_has(tmp_path: Path) -> None:
    """File names may hold bytes that are no text; Python gives them as lone surrogates."""
    write_document(report([passing("ranks_agree", "\udcff")]).document, tmp_path / "run.json")
    document = read(tmp_path / "run.json")
    assert json_of(document)["checks"][0]["loop"] == "\udcff"


def test_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    write_document(clean().document, "-")
    assert json.loads(capsys.readouterr().out)["kind"] == "run"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "expected JSON"),
        (b"\xff", "expected a readable file"),
        (b"[" * 100_000, "expected JSON"),
        (b"{}", "the document's schema"),
        (b'{"schema": NaN}', "NaN is no number"),
        (b'{"schema": 1e999}', "is no number"),
        (None, "expected a readable file"),
    ],
)
def test_files_that_hold_no_document(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "run.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInput, match=message):
        read(path)
