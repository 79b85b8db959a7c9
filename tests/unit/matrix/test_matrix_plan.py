"""Cells of a plan, and what a run means for its cell."""

from __future__ import annotations

from pathlib import Path

import pytest

from verify.errors import BadInput
from verify.matrix.plan import read_plan

PLAN = """
title = "two engines"
options = ["--num-timesteps", "5"]
releases = ["2"]

[[column]]
name = "alone"

[[column]]
name = "sharded"
rows = ["a"]
options = ["--world-size", "4"]
otherwise = "not sharded"

[[row]]
name = "a"
options = ["--target", "a"]
releases = ["1", "2"]

[[row]]
name = "b"
options = ["--target", "b"]
with = { alone = ["--seed", "7"] }

[[row]]
name = "c"
stands = "no adapter"
"""


def plan_of(folder: Path, text: str = PLAN) -> Path:
    path = folder / "plan.toml"
    path.write_text(text)
    return path


def test_the_cells_of_each_release(tmp_path: Path) -> None:
    plan = read_plan(plan_of(tmp_path), ["1", "2"])
    found = {(cell.row, cell.column, cell.release): cell for cell in plan.cells}
    assert plan.title == "two engines"
    assert len(plan.cells) == len(found) == 2 + 6
    assert found["a", "sharded", "1"].options == ("--num-timesteps", "5", "--target", "a", "--world-size", "4")
    assert found["b", "alone", "2"].options == ("--num-timesteps", "5", "--target", "b", "--seed", "7")
    assert [(cell.row, cell.column, cell.stands) for cell in plan.cells if cell.stands] == [
        ("c", "alone", "no adapter"),
        ("b", "sharded", "not sharded"),
        ("c", "sharded", "no adapter"),
    ]


@pytest.mark.parametrize("text", ["title = 1\n[[row]]", "not toml", PLAN.replace("title", "name")])
def test_what_is_no_plan(tmp_path: Path, text: str) -> None:
    with pytest.raises(BadInput, match=r"the plan is .*, expected a TOML file of a title, rows and columns"):
        read_plan(plan_of(tmp_path, text), ["1"])
    with pytest.raises(BadInput, match="a cell for 3"):
        read_plan(plan_of(tmp_path), ["3"])
    with pytest.raises(BadInput, match="FileNotFoundError"):
        read_plan(tmp_path / "none.toml", ["1"])


def test_the_plan_that_ships_is_one() -> None:
    from verify.commands.matrix import _plan

    cells = read_plan(_plan("vllm_omni"), ["0.28.0", "0.30.0"]).cells
    run = {cell.row for cell in cells if not cell.stands}
    assert len(run) >= 12
    assert {cell.release for cell in cells} == {"0.28.0", "0.30.0"}
