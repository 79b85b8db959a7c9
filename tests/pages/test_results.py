"""The tables of RESULTS.md and README.md say what the documents in fixtures/results hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import results
from example_documents import KINDS

from verify.commands.cli import main as verify

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted((ROOT / results.FOLDER).iterdir())


def test_the_pages_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert results.main(["--check", "--root", str(ROOT)]) == 0, capsys.readouterr()


def test_the_results_can_be_read() -> None:
    assert len((ROOT / "RESULTS.md").read_text(encoding="utf-8").splitlines()) <= 250


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_document_is_shown_by_a_command_and_in_a_table(path: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    json.loads(path.read_text(encoding="utf-8"))
    assert verify(["report", str(path), "--markdown", str(page)]) in (0, 1, 3)
    assert page.read_text(encoding="utf-8").startswith("#")
    assert f"({results.FOLDER}/{path.name})" in (ROOT / "RESULTS.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("table", results.TABLES)
def test_a_table_is_well_formed(table: str) -> None:
    for documents in ({}, results.load(ROOT / results.FOLDER)):
        head, rule, *rows = results.TABLES[table](documents).splitlines()
        assert set(rule) <= set("|- ")
        assert {row.count(" | ") for row in rows} <= {head.count(" | ")}


def test_writing_then_checking_then_a_change_is_stale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / results.FOLDER
    folder.mkdir(parents=True)
    for name in results.PAGES:
        (tmp_path / name).write_text("before\n<!-- table: faults -->\nold\n<!-- /table -->\nafter\n")
    (folder / "1.json").write_text(json.dumps(KINDS["faults"]))
    arguments = ["--root", str(tmp_path)]
    assert results.main(["--check", *arguments]) == 1
    assert results.main(arguments) == 0
    assert results.main(["--check", *arguments]) == 0
    text = (tmp_path / "RESULTS.md").read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| 2 ranks, CPU | 3 | 2 | 1 | 12 | [1](fixtures/results/1.json) |" in text
    (folder / "1.json").write_text(json.dumps(KINDS["faults"]).replace("12.0", "13.0"))
    capsys.readouterr()
    assert results.main(["--check", *arguments]) == 1
    assert "RESULTS.md is stale" in capsys.readouterr().out
