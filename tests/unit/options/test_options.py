"""The table of options: defaults are those of the fields, each field has an option, every command line comes back."""

from __future__ import annotations

import argparse
import json
import shlex
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest

from verify.bagel.options import BagelOptions
from verify.commands.cli import _parse, main
from verify.envelope.envelope import EnvelopeJob
from verify.fuzz.mutation import command_of
from verify.fuzz.session import FuzzJob
from verify.fuzz.tasks import OWN
from verify.options.option import Command, Group, Option, reproducing
from verify.options.table import COMMANDS, RUN
from verify.request import DenoiseRequest
from verify.runner.job import Job
from verify.targets.protocol import ModelOptions

PARTS = {"request": DenoiseRequest, "options": ModelOptions, "options.bagel": BagelOptions, "": Job}
# Each says what a preset, a branch or a device makes of it.
WITHOUT_DEFAULT = {"request.height", "request.width", "options.autocast"}


def default_of(path: str) -> Any:
    part, _, name = path.rpartition(".")
    (field,) = [field for field in fields(PARTS[part]) if field.name == name]
    assert field.default is not MISSING
    return field.default


@pytest.mark.parametrize("option", [o for o in RUN.options if o.field], ids=lambda option: option.flag)
def test_defaults_are_those_of_the_fields(option: Option) -> None:
    if option.field not in WITHOUT_DEFAULT:
        default = False if option.switch else option.default
        value = default if option.into is None or default is None else option.into(default)
        assert value == default_of(option.field)


def test_every_field_has_one_option() -> None:
    wanted = {f"{part}.{f.name}".lstrip(".") for part, kind in PARTS.items() for f in fields(kind)}
    named = [option.field for option in RUN.options if option.field]
    assert len(named) == len(set(named))
    assert wanted - set(named) == {"request", "options", "options.autocast", "options.bagel"}


@pytest.mark.parametrize("command", COMMANDS)
def test_flags_are_told_apart(command: str) -> None:
    flags = [option.flag for option in COMMANDS[command].options]
    assert len(flags) == len(set(flags))
    assert COMMANDS[command].examples


@pytest.mark.parametrize("command", ["run", "faults", "fuzz", "bench", "report", "doctor"])
def test_every_command_that_looks_at_loops_takes_a_target(command: str) -> None:
    assert {"--target", "--target-option"} <= {option.flag for option in COMMANDS[command].options}


@pytest.mark.parametrize("line", [line for command in COMMANDS.values() for line in command.examples])
def test_the_examples_of_help_can_be_parsed(line: str) -> None:
    words = shlex.split(line)
    assert words[0] == "verify"
    _parse(words[1:])


def comparable(parsed: argparse.Namespace) -> dict[str, Any]:
    """What decides a result, of a parsed command line."""
    options = [option for option in COMMANDS[parsed.command].options if option.reproduces]
    return {option.name: getattr(parsed, option.name) for option in options}


LINES = {
    "faults": ["--world-size 2", "--only a,b --world-size 3 --dtype float32 --preset small --seed 3 --timeout 7.5",
               "--from 'a file.py' --world-size 2 --cfg-interval 0.1 1 --checkpoint a/b"],
    "fuzz": ["", "--profile ci --cases 7 --seed 0 --combine a.py:b --device cuda --world-size 3 --backend gloo",
             "--mutants --device cpu --seed 9", "--envelope --preset small --timeout 100", "--replay a/b.json"],
    "bench": ["", "--sizes 64,128 --alternations 3,4 --cuda-graph --device cuda", "--cuda-graph 64 --time-limit 60.5",
              "--overhead --loops local --no-autocast --presets tiny,small", "--forwards a.py:B --timestep-shift 1.25"],
    "report": ["a.json", "a.json --trend b --target c.py:D --target-option e=f"],
    "doctor": ["", "--target a.py:B --target-option c=d"],
}  # fmt: skip


@pytest.mark.parametrize(("command", "line"), [(name, line) for name, lines in LINES.items() for line in lines])
def test_command_lines_come_back(command: str, line: str) -> None:
    parsed = _parse([command, *shlex.split(line)])
    again = reproducing(command, COMMANDS[command], vars(parsed))
    assert comparable(_parse(shlex.split(again)[1:])) == comparable(parsed)


def test_jobs_of_the_other_commands_come_back() -> None:
    line = FuzzJob("ci", 7, 3, "a.py:b", 3, "cuda", "gloo").command
    assert line == (
        "verify fuzz --profile ci --cases 7 --seed 3 --combine a.py:b --world-size 3 --device cuda --backend gloo"
    )
    assert "--combine" not in FuzzJob(combine=OWN).command
    line = EnvelopeJob("cuda", "small", timeout=60.0).command
    assert line == "verify fuzz --envelope --device cuda --preset small --timeout 60"
    line = command_of("fast", 2, "cpu", None)
    assert line == "verify fuzz --profile fast --seed 2 --mutants --device cpu"


def test_a_switch_that_can_be_turned_off() -> None:
    option = Option("--graph", "", "graph", negatable=True)
    command = Command("", (Group("", (option,)),))
    parser = argparse.ArgumentParser()
    command.configure(parser)
    for words, value, line in (([], None, ""), (["--graph"], True, " --graph"), (["--no-graph"], False, " --no-graph")):
        given = vars(parser.parse_args(words))
        assert command.fields(given)[""] == ({} if value is None else {"graph": value})
        assert reproducing("x", command, given) == f"verify x{line}"


def test_an_option_given_several_times() -> None:
    option = Option("--part", "", "parts", repeated=True, into=tuple)
    command = Command("", (Group("", (option,)),))
    parser = argparse.ArgumentParser()
    command.configure(parser)
    given = vars(parser.parse_args(["--part", "a b", "--part", "c"]))
    assert command.fields(given)[""] == {"parts": ("a b", "c")}
    assert reproducing("x", command, given) == "verify x --part 'a b' --part c"
    assert command.fields(vars(parser.parse_args([])))[""] == {}


def without_time(document: dict[str, Any]) -> str:
    """A document without what differs between two runs of one command."""
    timed = ("made", "timings", "seconds", "cases_per_minute", "environment")
    cut = {name: value for name, value in document.items() if name not in timed}
    for row in cut.get("faults", ()):
        row.pop("seconds")
    return json.dumps(cut, sort_keys=True)


TINY = "--height 32 --width 32 --num-timesteps 3"


@pytest.mark.usefixtures("judged_once")
@pytest.mark.parametrize(
    "line",
    [
        f"run --loops round_robin --world-size 1 --requests one {TINY} --cfg-interval 0.0 0.9",
        f"run --loop verify.loops.local:local --expect any --requests one {TINY}",
        f"faults --only scale_lost_on_one_rank {TINY} --seed 5",
        "fuzz --cases 3 --seed 4",
        f"bench --alternations 1 {TINY} --dtype float32",
        "doctor",
    ],
)
def test_what_a_document_says_to_run_gives_that_document(line: str, tmp_path: Path) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    status = main([*shlex.split(line), "--json", str(first)])
    document = json.loads(first.read_text())
    words = shlex.split(document["command"])
    assert words[:2] == ["verify", line.split()[0]]
    assert main([*words[1:], "--json", str(second)]) == status
    again = json.loads(second.read_text())
    if line.split()[0] in ("bench", "doctor"):  # Times, and memory, come and go.
        assert document.keys() == again.keys()
        assert document["command"] == again["command"]
    else:
        assert without_time(document) == without_time(again)
