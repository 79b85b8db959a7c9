"""``verify report``, and the pages and summaries that ``verify run`` writes."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
from example_documents import BENCH, KINDS, blocks_of, json_of, presented
from example_reports import clean, one_bit

from verify.commands.cli import main
from verify.report.sections.blocks import Table

ROOT = Path(__file__).parents[3]


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
    document = written(tmp_path, json_of(one_bit().document))
    assert main(["report", document, "--markdown", "-"]) == 0
    assert capsys.readouterr().out.startswith("## ✗ FAIL: ranks_agree (local) at step 7")
    assert main(["report", document, "--html", "-"]) == 0
    assert capsys.readouterr().out.startswith("<!doctype html>")
    assert main(["report", document]) == 0
    assert "FAIL ranks_agree (local)" in capsys.readouterr().out


@pytest.mark.parametrize("columns", [80, 200])
@pytest.mark.parametrize("kind", ["bench", "faults"])
def test_a_document_on_a_terminal(
    kind: str, columns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where a table does not fit, only its minor columns are left out."""
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["report", written(tmp_path, KINDS[kind])]) == 0
    printed = capsys.readouterr().out
    assert presented(KINDS[kind]).heading in printed
    for table in blocks_of(KINDS[kind], Table):
        kept = [columns == 200 or heading not in table.minor for heading in table.headings]
        for row in () if table.folded else table.rows:
            for cell in itertools.compress(row, kept):
                assert (cell if isinstance(cell, str) else cell.text) in printed, row
    assert presented(KINDS[kind]).said in printed


def test_the_page_of_a_benchmark_draws_each_loop_and_says_its_verdict_first(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert main(["report", written(tmp_path, BENCH), "--html", str(page)]) == 0
    text = page.read_text()
    assert text.count('class="bar"') == 1
    assert "2 s (1.5 to 2.5)" in text
    assert text.index("no measurable difference") < text.index('class="bar"') < text.index("<table>")


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        ("{", [], "JSON"),
        ("[]", [], "JSON object"),
        ('{"schema": 1, "kind": "prophecy"}', [], "kind of document"),
        ('{"schema": 1, "checks": []}', [], "missing required field"),
        ('{"schema": 1, "points": [{}]}', [], "$.points[0]"),
        (json.dumps(json_of(clean().document)), ["--html", "no/such/folder/x.html"], "folder"),
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
    document = json_of(clean().document)
    document["checks"][0]["compared"]["elements"] = 0
    assert main(["report", written(tmp_path, document), "--html", "-"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_it_loads_neither_torch_nor_numpy() -> None:
    """Which take seconds. It must say what a document holds in less than half of one."""
    document = ROOT / "fixtures" / "results" / "run-2ranks-7b-cuda-x1.json"
    code = (
        "import sys; from verify.commands.cli import main; "
        f"status = main(['report', {str(document)!r}, '--html', '/dev/null']); "
        "print(status, sorted({'torch', 'numpy', 'hypothesis'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "0 []\n"


def test_a_document_about_another_target_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = json_of(clean().document) | {"command": "verify run --target my.engine:Target --target-option layers=2"}
    given = ["report", written(tmp_path, document), "--target", "my.engine:Target", "--target-option"]
    assert main([*given, "layers=2"]) == 0
    assert main([*given, "layers=3"]) == 2
    assert "the document's target is 'my.engine:Target?layers=2', expected my.engine:Target?layers=3" in (
        capsys.readouterr().err
    )


def test_no_document_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "no-such-file.json"]) == 2
    assert capsys.readouterr().err.startswith("verify: the document is 'no-such-file.json'")
