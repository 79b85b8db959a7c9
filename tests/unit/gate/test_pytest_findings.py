"""Findings in pytest's JUnit file and Markdown summary; what want of GPUs left out is said on any machine."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checkout import pytest_collection_modifyitems

from verify.gate.findings import not_run, summary

ROOT = Path(__file__).parents[3]

SESSION = """
import pytest
from example_reports import clean, dead_and_hung, one_bit, ranks_differ, report
from verify.gate.verifier import Verifier


HOSTILE = "<script>|```&'\\x1b\\x00]]>"


@pytest.fixture
def seen(request):
    def make(report):
        return Verifier(request.config), report
    return make


def test_pass(seen):
    verifier, told = seen(clean())
    verifier.assert_pass(told, "ranks_agree", "local")
    verifier.assert_pass(told, "loops_agree", "*")


def test_fail(seen):
    verifier, told = seen(one_bit())
    verifier.assert_pass(told, "ranks_agree", "local")


def test_unknown(seen):
    verifier, told = seen(dead_and_hung())
    verifier.assert_pass(told, "ranks_agree", "local")


def test_hostile(seen):
    verifier, told = seen(report([ranks_differ(1.0, 2.0, 3, HOSTILE)]))
    verifier.assert_pass(told, "ranks_agree", HOSTILE)


@pytest.mark.gpu(count=65)
def test_more_gpus_than_anybody_has():
    pass
"""


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("session")
    (folder / "test_session.py").write_text(SESSION)
    (folder / "conftest.py").write_text('pytest_plugins = ["checkout"]\n')
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = gpu(count=1): needs GPUs\n")
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers")])
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "--junitxml=junit.xml",
        "--markdown=summary.md",
    ]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=240, env=os.environ | {"PYTHONPATH": paths}
    )
    assert done.returncode == 1, done.stdout + done.stderr
    return folder, done


def cases(folder: Path) -> dict[str, list[tuple[str, str]]]:
    root = ElementTree.parse(folder / "junit.xml").getroot()
    return {
        case.attrib["name"]: [(p.attrib["name"], p.attrib["value"]) for p in case.iter("property")]
        for case in root.iter("testcase")
    }


def test_the_junit_file_holds_the_findings(session: tuple[Path, Any]) -> None:
    found = cases(session[0])
    rest = [("verdict", "pass"), ("step", ""), ("message", "every byte agrees")]
    assert found["test_pass"] == [
        *[("check", "ranks_agree"), ("loop", "local"), *rest],
        *[("check", "loops_agree"), ("loop", "*"), *rest],
    ]
    failed = dict(found["test_fail"])
    message = failed.pop("message")
    assert failed == {"check": "ranks_agree", "loop": "local", "verdict": "fail", "step": "7"}
    assert message.startswith("FAIL ranks_agree (local): ")
    assert "0xbee00001" in message
    unknown = dict(found["test_unknown"])
    assert unknown["verdict"] == "unknown"
    assert "rank 2 was killed by SIGKILL" in unknown["message"]


def test_markup_and_control_characters_of_a_name_are_text(session: tuple[Path, Any]) -> None:
    found = dict(cases(session[0])["test_hostile"])
    assert found["loop"].startswith("<script>|```&'")
    assert "<script>|```&'\\x1b\\x00]]>" in found["message"]
    text = (session[0] / "summary.md").read_text()
    assert "\x1b" not in text and "\x00" not in text
    block = next(part for part in text.split("\n\n") if "test_hostile" in part)
    fence = block.split("text", 1)[0]
    assert set(fence) == {"`"} and len(fence) > 3  # Longer than any run of them inside.
    assert block.rstrip().endswith(fence)


def test_the_terminal_says_what_want_of_gpus_left_out(session: tuple[Path, Any]) -> None:
    found = torch.cuda.device_count()
    line = f"verify: not run for want of GPUs: 1 that need 65, found {found} (1 in test_session.py)"
    assert line in session[1].stdout.splitlines()


def test_the_summary_renders_on_its_own(session: tuple[Path, Any]) -> None:
    text = (session[0] / "summary.md").read_text()
    assert text.startswith("## ✗ fail\n")
    for row in ("| passed | 1 |", "| failed | 3 |", "| skipped | 1 |"):
        assert row in text
    assert "FAIL ranks_agree (local)" in text
    assert "- not run for want of GPUs: 1 that need 65" in text


@pytest.mark.parametrize("status", [2, 5])
def test_a_session_that_judged_nothing_is_no_pass(status: int) -> None:
    assert summary({}, status, []).startswith("## ? unknown")


class Item:
    """A test that needs some numbers of GPUs, and may be nightly."""

    def __init__(self, *counts: int, nightly: bool = False) -> None:
        self.counts, self.nightly = counts, nightly
        self.added: list[str] = []

    def get_closest_marker(self, name: str) -> object:
        return self.nightly if name == "nightly" else None

    def iter_markers(self, name: str) -> list[Any]:
        return [pytest.mark.gpu(count=count).mark for count in self.counts if name == "gpu"]

    def add_marker(self, mark: Any) -> None:
        self.added.append(mark.mark.kwargs["reason"])


def config(marks: str) -> tuple[Any, list[Item]]:
    """What pytest hands to the plugin, and where it is told what was deselected."""
    deselected: list[Item] = []
    hook = SimpleNamespace(pytest_deselected=lambda items: deselected.extend(items))
    return SimpleNamespace(option=SimpleNamespace(require_gpus=0, markexpr=marks, device="cpu"), hook=hook), deselected


@pytest.mark.parametrize(("marks", "run"), [("", 1), ("gate", 1), ("nightly", 2), ("gate or nightly", 2)])
def test_nightly_tests_wait_to_be_asked_for(marks: str, run: int) -> None:
    items = [Item(), Item(nightly=True)]
    options, deselected = config(marks)
    pytest_collection_modifyitems(options, items)  # type: ignore[arg-type]
    assert (len(items), len(deselected)) == (run, 2 - run)


@pytest.mark.parametrize(("gpus", "left_out"), [(0, {1: 2, 2: 1}), (1, {2: 1}), (2, {}), (8, {})])
def test_the_gate_is_valid_on_any_number_of_gpus(
    gpus: int, left_out: dict[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    items = [Item(), Item(1), Item(1, 2)]
    pytest_collection_modifyitems(config("gate")[0], items)  # type: ignore[arg-type]
    skipped = [
        SimpleNamespace(longrepr=("f", 1, f"Skipped: {reason}"), nodeid=f"tests/t.py::{i}")
        for i, item in enumerate(items)
        for reason in item.added
    ]
    assert items[0].added == []
    lines = not_run(skipped, gpus)
    assert lines == [
        f"not run for want of GPUs: {count} that need {needed}, found {gpus} ({count} in tests/t.py)"
        for needed, count in left_out.items()
    ]
