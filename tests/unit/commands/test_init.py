"""What another repository is given: files that run, and a script that completes."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from verify.commands.cli import _parse, main
from verify.commands.completion import script
from verify.commands.entry import SHADOWED
from verify.commands.init import CI
from verify.errors import BadInput
from verify.gate.claims import WHOLE, plan
from verify.runner.job import Job
from verify.runner.run import run
from verify.surroundings import check_distribution
from verify.verdict import Verdict

ROOT = Path(__file__).parents[3]
PINNED = re.compile(r"uses: [\w/-]+@[0-9a-f]{40} # v[\d.]+$")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "--ci", ",".join(CI)]) == 0
    return tmp_path


def test_the_target_runs_at_once(repository: Path) -> None:
    """What its planted bug looks like is tested with the guide that shows it."""
    target = f"{repository}/verify_target.py:MyTarget"
    assert run(target=target).verdict is Verdict.PASS
    assert {claim.way for claim in plan(Job(target=target)).claims} == {"text", *WHOLE}


def test_nothing_is_written_over(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (repository / "verify_target.py").write_text("mine")
    assert main(["init"]) == 2
    assert "verify_target.py, tests/test_cfg_parallel.py" in capsys.readouterr().err
    assert (repository / "verify_target.py").read_text() == "mine"
    assert main(["init", "--force"]) == 0
    assert "class MyTarget" in (repository / "verify_target.py").read_text()
    assert main(["init", "--ci", "jenkins"]) == 2
    assert main(["init", str(repository / "nowhere")]) == 2


def test_actions_are_pinned_and_may_only_read(repository: Path) -> None:
    text = (repository / ".github/workflows/verify.yml").read_text()
    uses = [line.strip(" -") for line in text.splitlines() if "uses: actions" in line]
    assert len(uses) == 4
    assert all(map(PINNED.match, uses))
    assert "permissions:\n  contents: read\n" in text
    for line in re.findall(r"run: (.*)", text):
        assert "${{" not in line  # An input in a command line could hold another command.


@pytest.mark.parametrize("name", [".github/workflows/verify.yml", ".buildkite/verify.yml", "verify.slurm.sh"])
def test_commands_of_the_jobs_exist(repository: Path, name: str, pytestconfig: pytest.Config) -> None:
    text = (repository / name).read_text().replace("$$", "$")
    for words in re.findall(r"-m verify ([^\n;|]*)", text):
        _parse(shlex.split(words))
    for words in re.findall(r"-m pytest ([^\n;|]*)", text):
        for option in re.findall(r"--(verify-[\w-]+)", words):
            assert hasattr(pytestconfig.option, option.replace("-", "_")), option
    if name.endswith(".sh"):
        assert subprocess.run(["bash", "-n", name], cwd=repository).returncode == 0
        assert os.access(repository / name, os.X_OK)


def completed(*words: str) -> list[str]:
    text = f"{script('bash')}\nCOMP_WORDS=({shlex.join(words)})\nCOMP_CWORD={len(words) - 1}\n_verify\n"
    done = subprocess.run(["bash", "-c", text + 'echo "${COMPREPLY[@]}"'], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_a_shell_completes_commands_and_options() -> None:
    assert completed("verify", "f") == ["faults", "fuzz"]
    assert completed("verify", "run", "--cfg-r") == ["--cfg-renorm-type", "--cfg-renorm-min"]
    assert completed("verify", "report", "a") == []  # Files are the shell's own business.
    assert script("zsh").endswith(script("bash"))
    assert main(["completion", "fish"]) == 2


def test_another_package_named_verify_is_refused_in_one_line(tmp_path: Path) -> None:
    check_distribution(tmp_path)
    (tmp_path / "cfg_verify-1.0.dist-info").mkdir()
    check_distribution(tmp_path)
    (tmp_path / "verify-2.0.dist-info").mkdir()
    with pytest.raises(BadInput, match=r"verify-2\.0\.dist-info.*uninstall both, then install cfg-verify"):
        check_distribution(tmp_path)


def test_where_it_took_the_modules_place_the_command_says_so(tmp_path: Path) -> None:
    (tmp_path / "verify").mkdir()
    (tmp_path / "verify" / "__init__.py").write_text("")
    (tmp_path / "cfg_verify.py").write_text((ROOT / "verify" / "commands" / "entry.py").read_text())
    code = "import sys, cfg_verify; sys.exit(cfg_verify.main())"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (2, SHADOWED + "\n")
