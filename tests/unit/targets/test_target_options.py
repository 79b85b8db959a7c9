"""``--target-option K=V``: what makes the target is handed it, on every command, and command lines come back."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from verify.commands.cli import _parse
from verify.commands.run import job_of
from verify.errors import BadInput
from verify.faults import FAULTS
from verify.faults.registry import loop_to_break
from verify.faults.runner import applies
from verify.fuzz.session import FuzzJob
from verify.options.table import COMMANDS
from verify.options.targets import given_options, split_options, with_options
from verify.runner.job import Job
from verify.targets.builtin import BuiltinTarget
from verify.targets.finding import find_target

MADE_WITH = """
from verify.targets.builtin import BuiltinTarget


class Family(BuiltinTarget):
    name = "family"

    def __init__(self, family="bagel", layers="1"):
        self.family, self.layers = family, layers


def refuses(**anything):
    raise ValueError("no such family")


made = Family()
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "made with.py").write_text(MADE_WITH)
    return f"{tmp_path}/made with.py"


def test_one_text_holds_a_target_and_its_options() -> None:
    text = with_options("a.py:B", ["family=wan 2.2?&=", "layers="])
    assert split_options(text) == ("a.py:B", {"family": "wan 2.2?&=", "layers": ""})
    assert given_options(text) == ["family=wan 2.2?&=", "layers="]
    assert with_options("a.py:B", []) == "a.py:B"


@pytest.mark.parametrize("options", [["family"], ["=wan"], ["two words=1"], ["a=1", "a=2"]])
def test_what_is_no_option(options: list[str]) -> None:
    with pytest.raises(BadInput, match="--target-option is"):
        with_options("a.py:B", options)


def test_a_target_is_made_with_its_options(file: str) -> None:
    made = find_target(with_options(f"{file}:Family", ["family=wan", "layers=2"]))
    assert (made.family, made.layers) == ("wan", "2")  # type: ignore[attr-defined]
    assert find_target(f"{file}:Family").family == "bagel"  # type: ignore[attr-defined]
    assert find_target(with_options(f"{file}:Family", ["family=wan", "layers=2"])) is made


@pytest.mark.parametrize(
    ("name", "option", "said"),
    [
        ("Family", "depth=2", "'depth', expected one of family, layers; leave it out or correct it"),
        ("made", "family=wan", "'family', expected none: it takes no arguments"),
        ("refuses", "family=wan", "raised ValueError: no such family"),
    ],
)
def test_options_that_a_target_does_not_take(file: str, name: str, option: str, said: str) -> None:
    with pytest.raises(BadInput) as caught:
        find_target(with_options(f"{file}:{name}", [option]))
    assert said in str(caught.value)


def test_the_command_line_comes_back(file: str) -> None:
    words = ["run", "--target", f"{file}:Family", "--target-option", "family=a b", "--target-option", "layers=3"]
    job = job_of(_parse(words))
    assert split_options(job.target)[1] == {"family": "a b", "layers": "3"}
    assert job_of(_parse(shlex.split(job.command)[1:])).command == job.command
    assert "--target-option 'family=a b' --target-option layers=3" in job.command
    assert "--target a.py:B --target-option c=d" in FuzzJob(combine="target:a.py:B?c=d").command


@pytest.mark.parametrize("command", ["run", "faults", "fuzz", "bench"])
def test_every_command_that_runs_loops_takes_a_target(command: str) -> None:
    flags = {option.flag for option in COMMANDS[command].options}
    assert {"--target", "--target-option"} <= flags


def test_faults_of_what_any_loop_is_given_go_into_other_engines(file: str) -> None:
    job = Job(target=f"{file}:Family")
    chosen = {fault.breaks for fault in FAULTS.values() if applies(fault, job)}
    assert chosen == {"loop", "group", "noise", "environment", "ending"}
    assert loop_to_break(BuiltinTarget(), "local") == "local"
    assert loop_to_break(BuiltinTarget(), "round_robin") is None  # It is no default.
