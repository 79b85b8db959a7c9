"""Cells are run by other processes; here by a script that answers as the option says."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from verify.commands.matrix import changed
from verify.matrix.outcome import cell_of
from verify.matrix.plan import Plan, Planned
from verify.matrix.running import NOT_REACHED, Runner
from verify.report.documents.matrix import Matrix, MatrixCell
from verify.report.documents.parts import head
from verify.report.documents.reading import document_of, read
from verify.report.documents.run import Run
from verify.report.markdown import markdown
from verify.report.sections.present import present

RESULT = Path("fixtures/results/run-2ranks-7b-cuda-x1.json")
CHILD = """
import json, shutil, sys, time
for line in sys.stdin:
    cell = json.loads(line)
    does = cell["options"][0]
    if does == "dies":
        sys.exit(1)
    if does == "hangs":
        time.sleep(60)
    if does == "passes":
        shutil.copy({result!r}, cell["json"])
    said = {{"refuses": "not served", "unknown": "not installed"}}.get(does, "")
    status = {{"refuses": 2, "unknown": 3}}.get(does, 0)
    print(json.dumps({{"status": status, "said": said}}), flush=True)
"""


def planned(*does: str) -> Plan:
    return Plan("a plan", tuple(Planned(f"row {n}", "column", "1", (each, str(n))) for n, each in enumerate(does)))


@pytest.fixture
def runner(tmp_path: Path) -> Callable[..., Runner]:
    script = tmp_path / "child.py"
    script.write_text(CHILD.format(result=str(RESULT.resolve())))

    def made(seconds: float = 60.0, limit: float = 30.0) -> Runner:
        return Runner([str(script)], {"1": sys.executable}, tmp_path / "kept", time.monotonic() + seconds, limit)

    return made


def test_every_cell_gets_an_outcome_and_is_kept(runner: Callable[..., Runner]) -> None:
    plan = planned("passes", "refuses", "unknown", "dies", "passes")
    told: list[MatrixCell] = []
    cells = runner().run(plan, 2, told.append)
    assert [cell.outcome for cell in cells] == ["pass", "refused", "unknown", "unknown", "pass"]
    assert [cell.said for cell in cells[1:3]] == ["not served", "not installed"]
    assert "no verdict within" in cells[3].said
    assert cells[1].command == "verify run refuses 1"
    assert sorted(cell.row for cell in told) == [f"row {n}" for n in range(5)]
    # The cell without a verdict is tried again; the others are not.
    again = runner(seconds=0.0).run(plan, 1, told.append)
    assert [cell.said == NOT_REACHED for cell in again] == [False, False, False, True, False]
    assert [cell.seconds for cell in again] == [cell.seconds for cell in cells]


def test_a_cell_that_hangs_ends_with_its_limit(runner: Callable[..., Runner]) -> None:
    cells = runner(limit=1.0).run(planned("hangs", "refuses"), 1, lambda cell: None)
    assert [cell.outcome for cell in cells] == ["unknown", "refused"]
    assert cells[0].said == "no verdict within 1 s"


def test_what_stands_in_the_way_is_told_and_nothing_is_run(runner: Callable[..., Runner]) -> None:
    plan = Plan("a plan", (Planned("row", "column", "1", (), stands="no adapter"),))
    (cell,) = runner().run(plan, 1, lambda cell: None)
    assert (cell.outcome, cell.said, cell.seconds) == ("unknown", "no adapter", None)


def run_with(**changes: Any) -> Run:
    found = read(RESULT)
    assert isinstance(found, Run)
    value = msgspec.to_builtins(found)
    for check in value["checks"]:
        check["verdict"] = changes.get(check["name"], check["verdict"])
    verdicts = {check["verdict"] for check in value["checks"]}
    value["verdict"] = "fail" if "fail" in verdicts else "unknown" if "unknown" in verdicts else "pass"
    document = document_of(value)
    assert isinstance(document, Run)
    return document


@pytest.mark.parametrize(
    ("changes", "outcome", "said"),
    [
        ({}, "pass", "steps, "),
        ({"ranks_agree": "fail", "collectives": "unknown"}, "fail", "ranks_agree: "),
        ({"parallelism_engaged": "unknown", "finite": "unknown"}, "vacuous", "; "),
        ({"finite": "unknown"}, "unknown", "finite: "),
    ],
)
def test_what_a_run_means(changes: dict[str, str], outcome: str, said: str) -> None:
    cell = cell_of(planned("x").cells[0], run_with(**changes), 1.23)
    assert (cell.outcome, cell.seconds) == (outcome, 1.2)
    assert said in cell.said
    assert cell.checks == tuple(name for name, verdict in changes.items() if verdict == "fail")


def cell(row: str, outcome: Any, release: str = "1") -> MatrixCell:
    return MatrixCell(
        row=row, column="alone", release=release, outcome=outcome, said=f"{row} said", command="verify run"
    )


def test_a_matrix_tells_its_denominator_and_what_changed() -> None:
    before = [cell("a", "pass"), cell("b", "fail"), cell("gone", "pass")]
    now = (cell("a", "fail"), cell("b", "fail"), cell("new", "vacuous"), cell("a", "pass", "2"))
    found = changed(before, now)
    assert [(c.row, c.release, c.before, c.now) for c in found] == [
        ("a", "1", "pass", "fail"),
        ("gone", "1", "pass", ""),
        ("new", "1", "", "vacuous"),
        ("a", "2", "", "pass"),
    ]
    document = Matrix(**head("verify matrix p"), title="T", cells=now, changed=found, seconds=2.0, not_reached=0)
    assert document_of(json.loads(msgspec.json.encode(document))) == document
    text = markdown(present(document))
    assert "of 4 cells 1 pass, 2 fail, 1 vacuous, 0 refused, 0 unknown" in text
    assert "Releases side by side" in text
    assert "What changed since the last" in text
    assert "a said" in text
