"""The page of the faults says what the registry says."""

from __future__ import annotations

from pathlib import Path

import faults_page
import pytest

from verify.faults import FAULTS

ROOT = Path(__file__).parents[2]


def test_the_page_is_not_stale() -> None:
    assert (ROOT / faults_page.PAGE).read_text(encoding="utf-8") == faults_page.rendered(), f"run {faults_page.COMMAND}"
    assert faults_page.main(["--check", "--root", str(ROOT)]) == 0


def test_a_stale_page_is_told_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stale = tmp_path / faults_page.PAGE
    stale.parent.mkdir(parents=True)
    stale.write_text("old")
    assert faults_page.main(["--check", "--root", str(tmp_path)]) == 1
    assert "is stale" in capsys.readouterr().out
    assert faults_page.main(["--root", str(tmp_path)]) == 0
    assert stale.read_text(encoding="utf-8") == faults_page.rendered()
    assert all(name in stale.read_text(encoding="utf-8") for name in FAULTS)
