"""A document of every kind as sections, and those as Markdown."""

from __future__ import annotations

import json
from typing import Any

import pytest
from example_documents import BENCH, ENVIRONMENT, FAULTS, HEAD, KINDS, blocks_of, presented
from example_reports import EXAMPLES, clean, drifting, one_bit, report

from verify.environment.properties import PROPERTIES, Kind
from verify.environment.variables import VISIBLE_DEVICES
from verify.fuzz.boundary import GUIDED_STEPS_AGREE
from verify.fuzz.engine import property_names
from verify.report.markdown import markdown
from verify.report.sections import environment
from verify.report.sections.blocks import Bullets, Card, Cell, Presentation, Strips, Table, TokenMap
from verify.report.sections.evidence import figures, token_map
from verify.report.sections.properties import CLAIMS
from verify.report.sections.run import closing, present_run
from verify.trace.trace import PRIVATE_ENVIRONMENT
from verify.verdict import Finding, Verdict


def card_of(shown: Presentation) -> Card:
    (card,) = (block for section in shown.sections for block in section.blocks if isinstance(block, Card))
    return card


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_says_its_result_its_command_and_its_environment(kind: str) -> None:
    text = markdown(presented(KINDS[kind]))
    assert text.startswith("## ")
    assert f"Reproduce: `{KINDS[kind]['command']}`" in text
    assert not KINDS[kind]["environment"] or "torch" in text or "x86" in text
    assert "| --- |" in text


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_summary_says_the_verdict_first_and_every_failure(example: str) -> None:
    made = EXAMPLES[example]()
    text = markdown(present_run(made.document))
    assert str(made.verdict) in text.splitlines()[0].lower()
    for finding in made.findings:
        assert finding.name in text
        if finding.verdict != "pass":
            assert finding.summary in text
    assert made.command in text


def test_the_card_says_who_is_at_fault() -> None:
    card = card_of(present_run(one_bit().document))
    assert card.title == "ranks_agree (local) at step 7"
    assert dict(card.facts) == {
        "rank": "0 and 1",
        "step": "7",
        "tensor": "x_t",
        "index": "[3, 5]",
        "rank 0": "-0.4375 (0xbee00000)",
        "rank 1": "-0.4375000298023224 (0xbee00001)",
        "difference": "absolute 2.98e-08, relative 6.81e-08, 1 ULP apart",
        "elements": "1 of 1024 elements differ",
    }
    assert "another kernel, dtype, input or order of branches" in card.means
    assert card.command == one_bit().command


def test_a_located_fault_names_rank_tensor_operator_and_module() -> None:
    found = {"step": 7, "rank": 1, "tensor": "velocity of text", "operator": "aten.mm", "module": "layers.3.mlp"}
    finding = one_bit().findings[1]
    located = Finding(finding.name, finding.loop, finding.verdict, finding.summary, finding.compared,
                      finding.first_divergence, (), {"location": found})  # fmt: skip
    facts = dict(card_of(present_run(report([located]).document)).facts)
    assert {name: facts[name] for name in ("rank", "step", "tensor", "operator", "module")} == {
        "rank": "1", "step": "7", "tensor": "velocity of text", "operator": "aten.mm", "module": "layers.3.mlp",
    }  # fmt: skip


def test_the_earliest_failure_comes_first_and_a_failed_environment_before_it() -> None:
    late, early = one_bit().findings[1], drifting().findings[0]
    settings = Finding("environments_agree", "local", Verdict.FAIL, "TF32 is on for rank 1 alone")
    assert card_of(present_run(report([late, early]).document)).title.endswith("at step 3")
    card = card_of(present_run(report([late, early, settings]).document))
    assert card.title == "environments_agree (local)"
    assert card.others == ["ranks_agree (local)", "ranks_agree (local)"]


def test_a_title_tells_runs_apart() -> None:
    titles = [present_run(made().document).title for made in EXAMPLES.values()]
    assert len(set(titles)) == len(titles) - 1  # Two of them differ in x_t alone.
    subject = "builtin tiny 128x128 bfloat16, guided by text, 2 ranks, cpu"
    assert titles[1] == f"fail: ranks_agree (local) at step 7 | {subject}"


def test_several_requests_are_counted_and_told_apart() -> None:
    request = {"seed": 0, "height": 32}
    judged = [
        {"request": request, "again": False, "verdict": "pass", "refused": ""},
        {"request": request | {"seed": 7}, "again": False, "verdict": None, "refused": "no such seed"},
        {"request": request, "again": True, "verdict": "pass", "refused": ""},
    ]
    shown = present_run(report(clean().findings, request=request, requests=judged).document)
    assert shown.subject[-1] == "3 requests: this one, 1 other and this one again; 1 refused by the target"
    (table,) = (
        b for section in shown.sections for b in section.blocks if isinstance(b, Table) and "Requests" in b.caption
    )
    assert [row[1] for row in table.rows] == ["the first", "seed 7", "the first again"]
    assert table.rows[1][2] == "no such seed"


def test_another_targets_request_needs_no_word_of_bagel() -> None:
    made = report(clean().findings, target="mine.py:Target", request={"frames": 16, "prompt": "a cat"})
    assert present_run(made.document).subject[0] == "mine.py:Target"


def test_a_missed_fault_and_a_misplaced_one_are_told_apart() -> None:
    shown = presented(FAULTS)
    (table,) = blocks_of(FAULTS, Table)[:1]
    results = [row[1].text for row in table.rows]
    assert results == ["", "", "caught, not placed", "missed"]
    assert [card.title for card in blocks_of(FAULTS, Card)] == ["two bits: caught, not placed", "three bits: missed"]
    assert shown.said == "2 of 3 faults caught, 1 placed, the clean control passed"


@pytest.mark.parametrize(("requests", "rest"), [(1, "preparing"), (4, "preparing and the other requests")])
def test_times_add_up(requests: int, rest: str) -> None:
    timings = {"imports": 2.0, "reference": 1.0, "local": 0.5, "total": 6.25}
    told = f"exit status 0 in 6.2 s (imports 2.00 s, reference 1.00 s, local 0.50 s, {rest} 2.75 s)"
    assert closing(Verdict.PASS, timings, requests) == told
    assert closing(Verdict.PASS, timings | {"total": 3.5}) == (
        "exit status 0 in 3.5 s (imports 2.00 s, reference 1.00 s, local 0.50 s)"
    )


def test_every_property_of_a_combine_says_what_it_claims() -> None:
    assert set(CLAIMS) == {*property_names("cuda"), *property_names("cpu"), GUIDED_STEPS_AGREE}
    (table,) = blocks_of(KINDS["fuzz"], Table)
    assert all(row[0].note == CLAIMS[row[0].text] for row in table.rows)


def test_names_are_text_and_no_markup() -> None:
    document = json.loads(json.dumps(KINDS["run"]).replace('"local"', '"<script>|_x_*`"'))
    text = markdown(presented(document))
    assert "\\<script\\>\\|\\_x\\_\\*\\`" in text
    assert "<script>" not in text.replace("\\<script\\>", "")


def test_what_sharing_a_gpu_does_by_itself_is_said() -> None:
    loops = {name: BENCH["points"][0]["loops"]["local"] | {"forwards_in_turn": turns, "limit_s": 1.0}
             for name, turns in (("broadcast", 90), ("local", 98))}  # fmt: skip

    def said(devices: list[str]) -> list[str]:
        document = BENCH | {"points": [BENCH["points"][0] | {"loops": loops, "devices": devices}]}
        return [s for block in blocks_of(document, Bullets) for s in block.sentences if "sharing a GPU alone" in s]

    assert said(["cuda:0", "cuda:0"])[0].startswith("sharing a GPU alone makes local 8.9 % longer than broadcast")
    assert not said(["cuda:0", "cuda:1"])


ENVELOPE: dict[str, Any] = HEAD | {
    "kind": "envelope", "command": "verify fuzz --envelope", "environment": ENVIRONMENT, "device": "cuda",
    "preset": "tiny", "timings": {},
    "rows": [
        {"subject": "combine", "condition": condition, "dtype": "bfloat16", "verdict": verdict, "worst": "one",
         "variants": 3, "max_ulp": 0, "mismatched": 0, "of": 64, "note": note, "explanation": "", "applies": applies,
         "affected": [], "max_abs": None, "relative": None, "seconds": 1.0}
        for condition, verdict, note, applies in (
            ("threads", "bitwise", "", True), ("compile", "within", "", True), ("strides", "bitwise", "", True),
            ("autocast", "differs", "why", True), ("another GPU", "unknown", "there is one", False),
            ("oneDNN", "unknown", "it hung", True))
    ],
}  # fmt: skip


def test_settings_that_change_bits_come_first_and_the_others_are_folded() -> None:
    telling, others, *_ = blocks_of(ENVELOPE, Table)
    assert [row[0].text for row in telling.rows] == ["autocast", "compile"]
    assert [row[0].text for row in others.rows] == ["oneDNN", "threads", "strides"]
    assert others.folded
    (card,) = blocks_of(ENVELOPE, Card)
    assert card.facts == [
        ("autocast", "combine: other bytes in bfloat16"),
        ("compile", "combine: within 0 ULP in bfloat16"),
    ]
    assert blocks_of(ENVELOPE, Bullets)[-1].sentences == [
        "combine in bfloat16: every byte is the same under 2 conditions: threads, strides",
        "not measured: another GPU (there is one), oneDNN (it hung)",
    ]
    text = markdown(presented(ENVELOPE))
    assert "<details><summary>the other 3 rows</summary>\n\n| condition" in text
    assert text.count("<details>") == text.count("\n</details>") == 1


def strips_of(document: Any) -> list[Strips]:
    shown = present_run(document)
    return [block for section in shown.sections for block in section.blocks if isinstance(block, Strips)]


def test_the_strips_of_a_pass_agree_everywhere() -> None:
    for strips in strips_of(clean().document):
        assert strips.verdict is Verdict.PASS
        assert [strip.said for strip in strips.strips] == ["agrees in 49 of 49 steps"] * 2


def test_the_strips_of_a_failure_show_the_odd_rank() -> None:
    (strips,) = strips_of(drifting().document)
    assert [strip.states for strip in strips.strips] == [
        (0.0,) * 3 + (0.5,) * 4,
        (0.0,) * 3 + (1.0,) * 4,
        (0.0,) * 3 + (0.5,) * 4,
    ]
    assert strips.strips[1].said == "differs from step 3 on"


def test_what_nothing_was_compared_in_is_not_shown_as_agreement() -> None:
    unjudged = Finding("ranks_agree", "local", Verdict.UNKNOWN, "one rank has nobody to agree with")
    (strips,) = strips_of(report([unjudged], world_size=1).document)
    assert [strip.said for strip in strips.strips] == ["not compared"]


def test_growth_and_map_are_those_of_the_traces() -> None:
    document = drifting().document
    (check,) = document.checks
    mismatched, ulps, tokens, numbers = figures(check, document)
    assert mismatched.series == [  # type: ignore[union-attr]
        ("ranks 0 and 1", (0, 0, 0, 2, 3, 3, 3)),
        ("ranks 1 and 2", (0, 0, 0, 2, 3, 3, 3)),
    ]
    assert [bool(ulp) for ulp in ulps.series[0][1]] == [False] * 3 + [True] * 4  # type: ignore[union-attr]
    assert isinstance(tokens, TokenMap)
    # Two of three channels of token 2 of a 2 by 2 image.
    assert tokens.rows == ((0, 0), (6, 0))
    assert tokens.title.startswith("1 of 4 tokens of x_t after step 3 hold other bytes")
    assert isinstance(numbers, Table)
    assert [row[0] for row in numbers.rows] == ["3", "4", "5", "6"]


def test_a_map_that_does_not_fit_the_image_is_not_drawn() -> None:
    document = drifting().document
    (check,) = document.checks
    check.data["map"]["tokens"] = "..6"
    assert token_map(check, document) is None
    check.data["map"] = "nonsense"
    assert token_map(check, document) is None


def test_environments_are_marked_where_they_matter() -> None:
    ranks = [
        {"rank": 0, "host": "a", "torch": "2.13.0", "variables": {"NCCL_ALGO": "Ring"}},
        {"rank": 1, "host": "b", "torch": "2.13.0", "variables": {}},
    ]
    assert [(row.name, row.values, row.matters) for row in environment.rows(ranks)] == [
        ("NCCL_ALGO", ("Ring", None), True),
        ("host", ("a", "b"), False),
        ("torch", ("2.13.0", "2.13.0"), False),
    ]
    said, differing, equal = environment.section(ranks).blocks
    assert said.text == "1 property differs between ranks and can change bits."  # type: ignore[union-attr]
    assert differing.rows[0] == [Cell("NCCL_ALGO", marked=True), "Ring", "not set"]  # type: ignore[union-attr]
    assert equal.rows == [["torch", "2.13.0"]]  # type: ignore[union-attr]


def test_what_may_differ_is_what_the_check_lets_differ() -> None:
    harmless = {setting.name for setting in PROPERTIES if setting.kind is Kind.SHOWN}
    assert set(environment.MAY_DIFFER) == {*PRIVATE_ENVIRONMENT, *VISIBLE_DEVICES, *harmless}
