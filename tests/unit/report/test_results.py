"""RESULTS.md and the README say what the files under fixtures/results hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from example_documents import BENCH, ENVIRONMENT, FAULTS, GPU, KINDS, OVERHEAD
from example_reports import EXAMPLES, clean

from verify.errors import BadInput
from verify.report.document import build_document
from verify.report.results import headlines, load, main, results, with_headlines
from verify.report.sections import section_of

ROOT = Path(__file__).parents[3]


def test_the_files_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["--check", "--root", str(ROOT)])
    assert status == 0, capsys.readouterr()


def test_there_is_something_to_show() -> None:
    assert load(ROOT / "fixtures" / "results")


def checkout(folder: Path, documents: dict[str, Any]) -> Path:
    (folder / "fixtures" / "results").mkdir(parents=True)
    (folder / "README.md").write_text("before\n<!-- results -->\nold\n<!-- /results -->\nafter\n")
    for name, document in documents.items():
        text = document if isinstance(document, str) else json.dumps(document)
        (folder / "fixtures" / "results" / name).write_text(text)
    return folder


def test_writing_then_checking_then_a_change_is_stale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = checkout(tmp_path, {"1.json": BENCH, "0.md": "By hand.\n"})
    assert main(["--check", "--root", str(root)]) == 1
    assert main(["--root", str(root)]) == 0
    assert main(["--check", "--root", str(root)]) == 0
    text = (root / "RESULTS.md").read_text()
    assert text.index("By hand.") < text.index("verify bench --sizes 256")
    readme = (root / "README.md").read_text()
    assert readme.startswith("before\n")
    assert readme.endswith("after\n")
    assert "7b on 2 ranks sharing 1 NVIDIA H200: at 256x256 no measurable difference" in readme
    assert "old" not in readme
    capsys.readouterr()
    (root / "fixtures" / "results" / "1.json").write_text(json.dumps(BENCH).replace("2.5", "2.6"))
    assert main(["--check", "--root", str(root)]) == 1
    assert "is stale" in capsys.readouterr().out


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_headed_by_command_and_environment(kind: str) -> None:
    text = results([(f"{kind}.json", KINDS[kind])])
    command = KINDS[kind].get("command", "verify fuzz --mutants")
    head = text.split("## ", 1)[1].splitlines()
    assert head[2] == f"`{command}`  "
    assert head[3]
    assert "| --- |" in text


@pytest.mark.parametrize("example", EXAMPLES)
def test_runs_that_fail_or_cannot_be_judged_are_shown_too(example: str) -> None:
    document = build_document(EXAMPLES[example]())
    text = results([("run.json", document)])
    assert f": {document['verdict']}" in text
    for check in document["checks"]:
        assert check["name"] in text


def test_a_missed_fault_and_a_misplaced_one_are_told_apart() -> None:
    open_questions, every = section_of(FAULTS).tables
    assert [row[-2] for row in every.rows] == ["passed", "caught, placed", "caught", "MISSED"]
    assert every.folded
    assert [row[-2] for row in open_questions.rows] == ["caught", "MISSED"]
    assert section_of(FAULTS).sentences == ["2 of 3 faults caught, 1 placed, in 12 s"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.json", '{"schema": 1, "kind": "prophecy"}', "prophecy"),
        ("x.json", '{"schema": 1}', "kind of document"),
        ("x.json", "[]", "JSON object"),
        ("x.json", "{", "JSON"),
        ("x.json", '{"schema": 1, "points": [{}]}', "KeyError"),
        ("x.json", '{"schema": 1, "checks": []}', "required"),
        ("x.csv", "1,2", ".json or a .md"),
    ],
)
def test_what_is_not_known_is_an_error(
    name: str, content: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = checkout(tmp_path, {name: content})
    assert main(["--root", str(root)]) == 2
    message = capsys.readouterr().err
    assert said in message
    assert name in message
    assert message.count("\n") == 1
    assert not (root / "RESULTS.md").exists()


def test_names_are_text_and_no_markup() -> None:
    document = json.loads(json.dumps(KINDS["run"]).replace('"local"', '"<script>|_x_*`"'))
    text = results([("run.json", document)])
    assert "\\<script\\>\\|\\_x\\_\\*\\`" in text
    assert "<script>" not in text.replace("\\<script\\>", "")


def test_a_readme_without_the_block_is_refused() -> None:
    with pytest.raises(BadInput, match="one block"):
        with_headlines("nothing here", "- line\n")


def test_a_run_that_did_not_pass_is_told_with_the_check_that_says_so() -> None:
    made = [("a.json", build_document(clean())), *((f"{n}.json", build_document(EXAMPLES[n]())) for n in EXAMPLES)]
    (line,) = headlines(made).splitlines()
    assert line == (
        "- Bits: 2 of 8 runs pass: tiny 128x128 on 2 ranks (CPU). Fail: tiny 128x128 (ranks_agree); tiny 128x128 "
        "(collectives); tiny 128x128 (cache_frozen). Unknown: tiny 128x128 (it did not finish)."
    )


def run_on(ranks: int, **changes: Any) -> dict[str, Any]:
    document = build_document(clean())
    document["environment"] = [GPU | {"rank": rank} for rank in range(ranks)]
    document["request"] |= changes
    return document


def test_runs_that_differ_in_one_thing_are_told_together() -> None:
    made = [run_on(2, preset="7b"), run_on(3, preset="7b"), run_on(2, preset="small"), run_on(3, preset="small"),
            run_on(2, preset="7b", num_timesteps=12), build_document(clean())]  # fmt: skip
    assert headlines([("x.json", document) for document in made]) == (
        "- Bits: 6 of 6 runs pass: 7b 128x128 and small 128x128 on 2 and 3 ranks sharing 1 NVIDIA H200; "
        "tiny 128x128 on 2 ranks (CPU).\n"
    )
    elsewhere = build_document(clean()) | {"environment": [GPU, GPU | {"rank": 1}]}
    assert headlines([("x.json", build_document(clean())), ("y.json", elsewhere)]) == (
        "- Bits: 2 of 2 runs pass: tiny 128x128 on 2 ranks (CPU) and sharing 1 NVIDIA H200.\n"
    )
    failed = build_document(EXAMPLES["one_bit"]())
    failed["request"]["num_timesteps"] = 12
    assert "Fail: tiny 128x128 at 12 timesteps (ranks_agree)" in headlines([("x.json", failed)])


REMARK = " (2 ranks share 1 GPU: no evidence about separate GPUs)"


def test_the_line_on_time_goes_by_size_and_tells_once_what_points_share() -> None:
    def at(side: int, said: str) -> dict[str, Any]:
        return BENCH | {"points": [BENCH["points"][0] | {"height": side, "width": side, "sentences": [said, "x"]}]}

    made = [at(1024, f"a loss{REMARK}"), at(256, f"no difference (within ± 0.10 %){REMARK}"), at(512, "a win")]
    assert headlines([("x.json", document) for document in made[:2]]) == (
        "- Time: 7b on 2 ranks sharing 1 NVIDIA H200 (no evidence about separate GPUs): at 256x256 no difference "
        "(within ± 0.10 %); at 1024x1024 a loss.\n"
    )
    # Where some are evidence, the others are left to RESULTS.md.
    assert headlines([("x.json", document) for document in made]) == (
        "- Time: 7b on 2 ranks sharing 1 NVIDIA H200: at 512x512 a win.\n"
    )


def test_the_line_on_verifying_tells_the_costliest_setting() -> None:
    point = OVERHEAD["overhead"][0]
    cheap = json.loads(json.dumps(point).replace("1.009", "1.001"))
    assert headlines([("x.json", OVERHEAD | {"overhead": [cheap, point, cheap]})]) == (
        "- Verifying adds 0.90 % (0.60 to 1.20 %) to 7b 1024 local on 2 ranks sharing 1 NVIDIA H200, "
        "the most of 3 settings.\n"
    )


def test_what_sharing_a_gpu_does_by_itself_is_said() -> None:
    loops = {name: BENCH["points"][0]["loops"]["local"] | {"forwards_in_turn": turns, "limit_s": 1.0}
             for name, turns in (("broadcast", 90), ("local", 98))}  # fmt: skip
    shared = BENCH["points"][0] | {"loops": loops, "devices": ["cuda:0", "cuda:0"]}
    (said,) = [s for s in section_of(BENCH | {"points": [shared]}).sentences if "sharing alone" in s]
    assert said.startswith("7b 256x256: sharing alone makes local 8.9 % longer than broadcast")
    apart = shared | {"devices": ["cuda:0", "cuda:1"]}
    assert not [s for s in section_of(BENCH | {"points": [apart]}).sentences if "sharing alone" in s]


def test_lines_of_the_readme_can_be_read() -> None:
    lines = headlines(load(ROOT / "fixtures" / "results")).splitlines()
    assert len(lines) == 5
    assert max(map(len, lines)) <= 400


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
    text = results([("x.json", ENVELOPE)])
    assert "<details><summary>the other 3 rows</summary>\n\n| subject" in text
    assert text.count("<details>") == text.count("\n</details>") == 1


def test_the_readme_gets_a_line_a_kind() -> None:
    lines = headlines([(f"{kind}.json", document) for kind, document in KINDS.items()]).splitlines()
    assert len(lines) == 5
    assert lines[1] == "- Injected faults: 2 of 3 caught and 1 placed on 2 ranks (CPU)."
    assert headlines([]) == "Nothing has been measured yet.\n"
