"""``verify report``, and the pages and summaries that ``verify run`` writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from example_documents import BENCH, KINDS
from example_reports import EXAMPLES, clean, dead_and_hung, drifting, one_bit

from verify.commands.cli import main
from verify.report.document import build_document, write_document
from verify.report.markdown import run_markdown
from verify.report.sections import section_of


def written(folder: Path, document: object) -> str:
    path = folder / "document.json"
    path.write_text(json.dumps(document))
    return str(path)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_page_and_a_summary(kind: str, tmp_path: Path) -> None:
    document = written(tmp_path, KINDS[kind])
    page, summary = tmp_path / "page.html", tmp_path / "summary.md"
    assert main(["report", document, "--html", str(page), "--markdown", str(summary)]) == 0
    assert page.read_text().startswith("<!doctype html>")
    assert summary.read_text().startswith("## ")


def test_standard_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = written(tmp_path, build_document(one_bit()))
    assert main(["report", document, "--markdown", "-"]) == 0
    assert capsys.readouterr().out == run_markdown(one_bit())
    assert main(["report", document, "--html", "-"]) == 0
    assert capsys.readouterr().out.startswith("<!doctype html>")
    assert main(["report", document]) == 0
    assert "FAIL ranks_agree (local)" in capsys.readouterr().out


def test_plots(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    document = tmp_path / "run.json"
    write_document(build_document(drifting()), document)
    assert main(["report", str(document), "--png", str(tmp_path / "plots")]) == 0
    plots = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert plots == ["agreement.png", "growth-0.png", "map-0.png"]
    assert all((tmp_path / "plots" / name).read_bytes().startswith(b"\x89PNG") for name in plots)


@pytest.mark.parametrize(
    ("kind", "names"),
    [("bench", ["bars-0.png"]), ("overhead", ["bars-0.png"]), ("faults", ["table-0.png", "table-1.png"]),
     ("fuzz", ["table-0.png"])],
)  # fmt: skip
def test_plots_of_what_is_no_run(kind: str, names: list[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert main(["report", written(tmp_path, KINDS[kind]), "--png", str(tmp_path / "plots")]) == 0
    plots = sorted((tmp_path / "plots").iterdir())
    assert [path.name for path in plots] == names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in plots)


@pytest.mark.parametrize("kind", ["bench", "faults"])
def test_a_document_on_a_terminal(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", written(tmp_path, KINDS[kind])]) == 0
    printed = capsys.readouterr().out
    section = section_of(KINDS[kind])
    assert section.title in printed
    for table in section.tables:
        for row in table.rows:
            assert all(cell in printed for cell in row), row
    assert all(said in printed for said in section.sentences)


def test_the_page_of_a_benchmark_draws_each_loop_and_says_its_verdict_first(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert main(["report", written(tmp_path, BENCH), "--html", str(page)]) == 0
    text = page.read_text()
    assert text.count('class="bar"') == 1
    assert "2 s (1.5 to 2.5)" in text
    assert text.index("no measurable difference") < text.index('class="bar"') < text.index("<table>")


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_summary_says_the_verdict_first_and_every_failure(name: str) -> None:
    made = EXAMPLES[name]()
    text = run_markdown(made)
    assert str(made.verdict) in text.splitlines()[0]
    for finding in made.findings:
        if finding.verdict != "pass":
            assert finding.summary in text
    assert made.command in text


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        ("{", [], "JSON"),
        ("[]", [], "JSON object"),
        ('{"schema": 1, "kind": "prophecy"}', [], "kind of document"),
        ('{"schema": 1, "checks": []}', [], "required property"),
        ('{"schema": 1, "points": [{}]}', [], "bench document"),
        (json.dumps(BENCH | {"points": [BENCH["points"][0] | {"loops": {}}]}), ["--png", "x"], "--png"),
        (json.dumps(build_document(dead_and_hung())), ["--png", "x"], "compared none"),
        (json.dumps(build_document(clean())), ["--html", "no/such/folder/x.html"], "folder"),
        ('{"verdict": NaN', [], "JSON"),
    ],
)
def test_a_bad_document_is_one_line(
    content: str, options: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.json").write_text(content)
    assert main(["report", "x.json", *options]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1


def test_a_contradiction_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = build_document(clean())
    document["checks"][0]["compared"]["elements"] = 0
    assert main(["report", written(tmp_path, document), "--html", "-"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_no_document_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "no-such-file.json"]) == 2
    assert capsys.readouterr().err.startswith("verify: the document is 'no-such-file.json'")
