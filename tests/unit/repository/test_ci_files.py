"""The files that people copy name environments, commands and options that exist."""

from __future__ import annotations

import configparser
import json
import re
from pathlib import Path

import pytest
from example_documents import BENCH, json_of
from example_reports import clean

from verify.commands.cli import main
from verify.options.table import COMMANDS

ROOT = Path(__file__).parents[3]
FILES = (".github/workflows/gate.yml", ".github/workflows/nightly.yml", ".buildkite/pipeline.yml")


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", FILES)
def test_environments_exist(name: str) -> None:
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini")
    named = set(re.findall(r"tox run -q -e ([\w-]+)", text_of(name)))
    named |= set(re.findall(r"'(nightly[\w-]*)'", text_of(name)))
    assert named
    assert {f"testenv:{environment}" for environment in named} <= set(tox.sections())


@pytest.mark.parametrize("name", FILES)
def test_commands_and_options_exist(name: str, pytestconfig: pytest.Config) -> None:
    for command, rest in re.findall(r"-m verify (\w+)([^\n|]*)", text_of(name)):
        assert command in COMMANDS
        known = {option.flag for option in COMMANDS[command].options}
        assert set(re.findall(r"--[a-z][\w-]*", rest)) <= known
    for rest in re.findall(r"(?:-m pytest|-e gate --|-e gpu --)([^\n;|]*)", text_of(name)):
        for option in re.findall(r"--([a-z]+)", rest):
            destination = {"junitxml": "xmlpath"}.get(option, option)
            assert hasattr(pytestconfig.option, destination), option


@pytest.mark.parametrize("name", FILES[1:])
def test_a_night_leaves_nothing_out(name: str) -> None:
    """Each command that takes too long for a pull request, with its document where the artifacts are."""
    text = text_of(name)
    for command in ("run", "fuzz", "faults", "bench"):
        assert re.search(rf"-m verify {command} [^\n]*--json night/{command}[\w-]*\.json", text), command
    assert "tox run -q -e mutation -- --json night/mutation.json" in text


def test_the_exit_status_decides() -> None:
    """The summary is posted whatever happens, and does not stand for the outcome."""
    assert "continue-on-error" not in text_of(FILES[0]) + text_of(FILES[1])
    assert text_of(FILES[2]).count("exit $$status") == 2
    assert "|| true" not in "".join(map(text_of, FILES))


def test_timings_are_set_beside_earlier_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = json_of(clean().document)
    (tmp_path / "earlier").mkdir()
    for night, factor in enumerate((0.5, 1.0, 2.0)):
        timings = {name: factor * seconds for name, seconds in document["timings"].items()}
        (tmp_path / "earlier" / f"{night}.json").write_text(json.dumps(document | {"timings": timings}))
    (tmp_path / "earlier" / "other.json").write_text(json.dumps(document | {"command": "another"}))
    now = document | {"timings": {"local": 0.39, "new": 1.0}}
    (tmp_path / "now.json").write_text(json.dumps(now))
    assert main(["report", str(tmp_path / "now.json"), "--trend", str(tmp_path / "earlier")]) == 0
    text = capsys.readouterr().out
    assert "| local | 0.13 | 0.26 | 0.52 | 0.39 | +50.0 % |" in text
    assert "| new | - | - | - | 1.00 | - |" in text
    assert "1 left out that are of another command" in text
    assert main(["report", str(tmp_path / "now.json"), "--trend", str(tmp_path / "none")]) == 2


def test_loops_of_a_benchmark_are_set_beside_those_of_earlier_nights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "earlier").mkdir()
    (tmp_path / "earlier" / "0.json").write_text(json.dumps(BENCH).replace('"p50": 2.0', '"p50": 1.6'))
    (tmp_path / "now.json").write_text(json.dumps(BENCH))
    assert main(["report", str(tmp_path / "now.json"), "--trend", str(tmp_path / "earlier")]) == 0
    text = capsys.readouterr().out
    assert "| 7b 256x256, 2 ranks, 49 steps: local | 1.60 | 2.00 | +25.0 % |" in text
