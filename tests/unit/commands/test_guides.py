"""The guides of ``verify help``: each shell block is run in a scratch repository, each Python block is used."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from verify.commands import help as guides
from verify.commands.cli import _parse, main
from verify.commands.init import ALWAYS
from verify.gate import plugin

ROOT = Path(__file__).parents[3]
# Lines that show a failure; every other line of a guide succeeds.
RED = ("PLANTED_BUG=1 pytest", "verify run --loop tests/meta/broken_loops.py:one_bit")
VERIFY = f'#!/bin/bash\nexec {sys.executable} -m verify "$@"\n'
PYTEST = f'#!/bin/bash\nexec {sys.executable} -m pytest -p {plugin.__name__} -p no:cacheprovider "$@"\n'
PIP = "#!/bin/bash\n[ \"$*\" = 'install cfg-verify' ]\n"


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


def guide(topic: str) -> str:
    return (guides.GUIDES / f"{topic}.md").read_text(encoding="utf-8")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """With an engine that has a loop, as the guides say of the reader's."""
    (tmp_path / "bin").mkdir()
    for name, text in {"verify": VERIFY, "pytest": PYTEST, "pip": PIP}.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (loop,) = (block for block in blocks((ROOT / "README.md").read_text(), "python") if "# my_loop.py" in block)
    (tmp_path / "my_engine").mkdir()
    (tmp_path / "my_engine" / "loops.py").write_text(loop)
    return tmp_path


def run_line(line: str, folder: Path, program_folder: Path) -> subprocess.CompletedProcess[str]:
    paths = {"PATH": f"{program_folder}:{os.environ['PATH']}", "PYTHONPATH": f"{ROOT}:{folder}"}
    command = ["bash", "-c", line]
    return subprocess.run(
        command, cwd=folder, env=os.environ | paths, capture_output=True, text=True, timeout=280
    )  # fmt: skip


@pytest.mark.parametrize(
    "topic", [pytest.param(long, marks=pytest.mark.nightly) for long in ("target", "gate", "check")]
)
def test_every_line_does_what_the_guide_says(topic: str, repository: Path) -> None:
    text, folder = guide(topic), repository
    python = blocks(text, "python")
    if topic == "gate":
        (repository / "tests").mkdir()
        (repository / "tests" / "test_own.py").write_text(python[0])
    elif topic == "target":
        # Its first three parts take the place of those of the skeleton; what follows is for other engines.
        assert main(["init", str(repository)]) == 0
        stated, prepare, parallel, *_ = python
        stated = stated.replace("class MyTarget:", "class MyTarget(MyTarget):") + "    prepare = prepare\n"
        path = repository / "verify_target.py"
        path.write_text("\n\n".join([path.read_text(), prepare, parallel, stated]))
    else:  # Its reader is in a checkout.
        folder = ROOT
    for line in "".join(blocks(text, "sh")).splitlines():
        done = run_line(line, folder, repository / "bin")
        assert done.returncode == (1 if line in RED else 0), f"{line}\n{done.stdout}{done.stderr}"


def test_a_failure_reads_as_the_guide_shows(repository: Path) -> None:
    """Numbers may be another machine's; the lines may not."""
    assert main(["init", str(repository)]) == 0
    line = "PLANTED_BUG=1 verify run --target verify_target.py:MyTarget"
    done = run_line(line, repository, repository / "bin")
    said = done.stdout
    assert done.returncode == 1, said
    assert "step 3" in said
    assert "on rank 1; the first operator is aten::mul.Tensor" in said
    (shown,) = (block for block in blocks(guide("failure"), "") if block.startswith("FAIL "))
    masked = [re.sub(r"0x[0-9a-f]+|-?\d+(\.\d+)?", "N", each).strip() for each in (said, shown)]
    missing = [line for line in masked[1].splitlines() if line.strip() not in masked[0]]
    assert not missing, said


@pytest.mark.parametrize("topic", guides.TOPICS)
def test_what_a_guide_names_exists(topic: str, capsys: pytest.CaptureFixture[str], pytestconfig: pytest.Config) -> None:
    assert main(["help", topic]) == 0
    text = capsys.readouterr().out
    for line in "".join(blocks(text, "sh")).splitlines():
        words = shlex.split(line)
        if words[0] == "verify":
            _parse(words[1:])
    for option in re.findall(r"--(verify-[\w-]+)", text):
        assert hasattr(pytestconfig.option, option.replace("-", "_")), option
    for path in re.findall(r"`((?:verify|tests)/[\w/]+\.py)`", text):
        assert (ROOT / path).exists() or "NAME" in path or path in ALWAYS.values()
    for name in re.findall(r"verify help (\w+)", text):
        assert name in guides.TOPICS


def test_every_guide_is_a_page_of_the_site() -> None:
    site = (ROOT / "mkdocs.yml").read_text()
    assert set(re.findall(r"guides/(\w+)\.md", site)) == set(guides.TOPICS)
    assert {path.stem for path in (ROOT / "docs" / "guides").glob("*.md")} == set(guides.TOPICS)


def test_help_lists_the_guides(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help"]) == 0
    assert [line.split()[2] for line in capsys.readouterr().out.splitlines()[:-1]] == [*guides.TOPICS]
    assert main(["help", "me"]) == 2
