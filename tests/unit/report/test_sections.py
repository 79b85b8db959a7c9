"""A document of every kind as a section of sentences and tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from example_documents import BENCH, ENVIRONMENT, FAULTS, KINDS
from example_reports import EXAMPLES

from verify.report.document import build_document
from verify.report.sections import section_of
from verify.report.tables import markdown_section

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_headed_by_command_and_environment(kind: str) -> None:
    text = markdown_section(section_of(KINDS[kind]))
    command = KINDS[kind].get("command", "verify fuzz --mutants")
    head = text.split("## ", 1)[1].splitlines()
    assert head[2] == f"`{command}`  "
    assert head[3]
    assert "| --- |" in text


@pytest.mark.parametrize("example", EXAMPLES)
def test_runs_that_fail_or_cannot_be_judged_are_shown_too(example: str) -> None:
    document = build_document(EXAMPLES[example]())
    text = markdown_section(section_of(document))
    assert f": {document['verdict']}" in text
    for check in document["checks"]:
        assert check["name"] in text


def test_a_missed_fault_and_a_misplaced_one_are_told_apart() -> None:
    open_questions, every = section_of(FAULTS).tables
    assert [row[-2] for row in every.rows] == ["passed", "caught, placed", "caught", "MISSED"]
    assert every.folded
    assert [row[-2] for row in open_questions.rows] == ["caught", "MISSED"]
    assert section_of(FAULTS).sentences == ["2 of 3 faults caught, 1 placed, in 12 s"]


def test_names_are_text_and_no_markup() -> None:
    document = json.loads(json.dumps(KINDS["run"]).replace('"local"', '"<script>|_x_*`"'))
    text = markdown_section(section_of(document))
    assert "\\<script\\>\\|\\_x\\_\\*\\`" in text
    assert "<script>" not in text.replace("\\<script\\>", "")


def test_what_sharing_a_gpu_does_by_itself_is_said() -> None:
    loops = {name: BENCH["points"][0]["loops"]["local"] | {"forwards_in_turn": turns, "limit_s": 1.0}
             for name, turns in (("broadcast", 90), ("local", 98))}  # fmt: skip
    shared = BENCH["points"][0] | {"loops": loops, "devices": ["cuda:0", "cuda:0"]}
    (said,) = [s for s in section_of(BENCH | {"points": [shared]}).sentences if "sharing alone" in s]
    assert said.startswith("7b 256x256: sharing alone makes local 8.9 % longer than broadcast")
    apart = shared | {"devices": ["cuda:0", "cuda:1"]}
    assert not [s for s in section_of(BENCH | {"points": [apart]}).sentences if "sharing alone" in s]


ENVELOPE: dict[str, Any] = {
    "schema": 1, "kind": "envelope", "environment": ENVIRONMENT, "notes": [],
    "rows": [
        {"subject": "combine", "condition": condition, "dtype": "bfloat16", "verdict": verdict, "worst": "one",
         "variants": 3, "max_ulp": 0, "mismatched": 0, "of": 64, "note": note, "explanation": "", "applies": applies}
        for condition, verdict, note, applies in (
            ("threads", "bitwise", "", True), ("compile", "within", "", True), ("strides", "bitwise", "", True),
            ("autocast", "differs", "why", True), ("another GPU", "unknown", "there is one", False),
            ("oneDNN", "unknown", "it hung", True))
    ],
}  # fmt: skip


def test_settings_that_change_bits_come_first_and_the_others_are_folded() -> None:
    section = section_of(ENVELOPE)
    telling, others = section.tables
    assert [row[1] for row in telling.rows] == ["autocast", "compile", "oneDNN"]
    assert [row[1] for row in others.rows] == ["threads", "strides", "another GPU"]
    assert others.folded
    assert section.sentences == [
        "combine in bfloat16: every byte is the same under 2 conditions: threads, strides",
        "not measured: another GPU (there is one)",
    ]
    text = markdown_section(section_of(ENVELOPE))
    assert "<details><summary>the other 3 rows</summary>\n\n| subject" in text
    assert text.count("<details>") == text.count("\n</details>") == 1
