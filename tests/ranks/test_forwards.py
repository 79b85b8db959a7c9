"""``verify bench --forwards``: a target's forward pass in turn with the built-in one's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from example_documents import blocks_of

from verify.bench.forwards import forwards
from verify.commands.cli import main
from verify.errors import BadInput
from verify.report.sections.blocks import Table
from verify.runner.job import Job

TARGETS = Path(__file__).with_name("bagel_targets.py")
TOY = Path(__file__).parents[1] / "examples" / "toy_target.py"


def test_the_same_network_and_one_twice_as_strong() -> None:
    for name, apart in (("Same", 0.0), ("Doubled", 1.0)):
        job = Job(target=f"{TARGETS}:{name}")
        measured = forwards(job, rounds=2)
        theirs, ours = measured["rows"]
        assert (theirs["network"], ours["network"]) == (job.target, "builtin")
        assert theirs["velocities_apart"] == apart
        assert theirs["over_builtin"]["pairs"] == 2
        for row in (theirs, ours):
            assert 0 < row["min_ms"] <= row["p50_ms"] <= row["p100_ms"]
        assert [rank["rank"] for rank in measured["environment"]] == [0, 1]


def test_the_command_and_its_section(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "forwards.json"
    command = ["bench", "--forwards", f"{TARGETS}:Same", "--alternations", "1", "--json", str(file)]
    assert main(command) == 0
    assert "0.00e+00" in capsys.readouterr().out
    document = json.loads(file.read_text())
    assert [row[0] for row in blocks_of(document, Table)[0].rows] == [f"{TARGETS}:Same", "builtin"]
    assert f"--forwards {TARGETS}:Same" in document["command"]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (f"{TOY}:ToyTarget", r"latents \(64, 16\) and a branch gen, .*, not \(64, 12\) and branches cond, uncond"),
        ("builtin", "expected another target than the built-in one"),
    ],
)
def test_what_cannot_be_compared_is_refused(target: str, expected: str) -> None:
    with pytest.raises(BadInput, match=expected):
        forwards(Job(target=target), rounds=1)
