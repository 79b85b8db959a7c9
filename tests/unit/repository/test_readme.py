"""What the documents and the packaging say of each other holds."""

from __future__ import annotations

import ast
import configparser
import re
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from verify.environment.variables import MATTERS
from verify.options.table import COMMANDS
from verify.verdict import EXIT_BAD_INPUT, EXIT_STATUS

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")


def blocks(language: str) -> list[str]:
    found: list[str] = re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)
    assert found
    return found


def tox() -> configparser.ConfigParser:
    parsed = configparser.ConfigParser(interpolation=None)
    parsed.read(ROOT / "tox.ini")
    return parsed


def pyproject_dependencies() -> list[str]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    return [*project["dependencies"], *project["optional-dependencies"]["tests"]]


def test_the_two_commands_set_up_all_they_need() -> None:
    main_job, tests = (block.strip() for block in blocks("sh")[:2])
    for command, environment in ((main_job, "verify"), (tests, "py")):
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install -q tox && ")
        assert command.endswith(f"tox run -q -e {environment}")
        assert f"testenv:{environment}" in tox()


def test_ci_runs_the_command_of_the_tests_as_the_readme_gives_it() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert "set -euo pipefail" in lines
    # Bash does not end at a failure in the middle of a chain, hence the exit.
    assert blocks("sh")[1].strip() + " || exit" in lines
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111 == 0o111


def test_every_check_is_in_the_table_in_the_words_of_its_record() -> None:
    from verify.checks.records import CHECKS

    for record in CHECKS.values():
        assert f"| `{record.name}` | {record.claim} | {record.not_said} |\n" in README


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", text)
    for target in targets:
        if "://" not in target:
            assert (ROOT / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS)
def test_paths_and_commands_that_are_named_exist(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    for path in re.findall(r"`((?:verify|tests|fixtures|\.ci)/[\w/.]*)`", text):
        if "NAME" in path:  # Stands for what a reader will write.
            continue
        assert (ROOT / path).exists(), path
    for command in re.findall(r"(?:`|python -m )verify (\w+)", text):
        assert command in COMMANDS, command


def test_exit_statuses_are_those_of_the_program() -> None:
    rows = dict(re.findall(r"^\| (\d) \| ([\w, ]*?) *\|", README, re.M))
    expected = {str(EXIT_BAD_INPUT): ""}
    for verdict, status in EXIT_STATUS.items():
        expected[str(status)] = ", ".join(filter(None, [expected.get(str(status)), str(verdict)]))
    assert rows == expected


def test_options_are_those_of_the_program(pytestconfig: pytest.Config) -> None:
    known = {"--junitxml", "--pyargs", "--verify", "--verify-target"}
    assert pytestconfig.option.require_gpus is not None
    known.add("--require-gpus")
    known |= {option.flag for command in COMMANDS.values() for option in command.options}
    # What stands before the module's name is torchrun's or srun's.
    own = re.sub(r"^.*(?:torchrun|srun) .*(?= -m verify| python -m verify)", "", README, flags=re.M)
    named = set(re.findall(r"(?<![\w-])(--[a-z][\w-]+)", own))
    assert named
    assert named <= known


def test_the_loop_of_your_own_is_python_and_has_the_signature() -> None:
    (block,) = blocks("python")
    (function,) = [node for node in ast.parse(block).body if isinstance(node, ast.FunctionDef)]
    assert [argument.arg for argument in function.args.args] == ["denoiser", "request", "x_0", "group", "observe"]


def test_the_gpu_environment_installs_everything_but_torch() -> None:
    gpu = tox()["testenv:gpu"]
    others = {name for name in pyproject_dependencies() if not name.startswith("torch")}
    assert set(gpu["deps"].split()) == others
    assert tox()["testenv:nightly-gpu"]["deps"] == "{[testenv:gpu]deps}"
    assert gpu["system_site_packages"] == "true"
    assert gpu["skip_install"] == "true"


def test_torch_is_pinned_where_it_is_installed() -> None:
    parsed = tox()
    for section in ("testenv:verify", "testenv:py", "testenv:gate", "testenv:nightly", "testenv:types"):
        (pin,) = [line for line in parsed[section]["deps"].split() if line.startswith("torch")]
        assert pin == "torch==2.13.0"


def test_variables_that_can_change_bits_reach_the_environments() -> None:
    passed = tox()["testenv"]["pass_env"].split()
    for name in MATTERS:
        assert any(fnmatchcase(name, pattern) for pattern in passed), name


def test_types_and_schemas_ship_with_the_package() -> None:
    assert (ROOT / "verify" / "py.typed").is_file()


def test_the_map_names_every_folder() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 110
    package = ROOT / "verify"
    folders = {path.parent for path in package.rglob("*.py")} - {package}
    engines = {path for path in folders if path.parent == package / "targets"}
    parts = {path.relative_to(package).as_posix() + "/" for path in folders - engines if path.parent.name != "report"}
    parts |= {path.name for path in package.glob("*.py")} - {"__init__.py", "__main__.py"}
    assert [part for part in sorted(parts) if f"`{part}`" not in text] == []
    tests = (ROOT / "tests" / "README.md").read_text(encoding="utf-8")
    folders = {path for path in (ROOT / "tests").iterdir() if path.is_dir() and not path.name.startswith((".", "__"))}
    assert [path.name for path in folders if f"`{path.name}/`" not in tests] == []
