"""The jobs that ``verify init`` writes, run step by step in a scratch repository as their services would run them.

What a service or an index would do is stood in for: installing the package, an agent's annotations, two of Slurm's
commands.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from verify.commands.cli import main
from verify.commands.init import CI
from verify.gate import plugin

ROOT = Path(__file__).parents[3]
# One claim of many: what a job does with a claim is the same for all.
ONE_CLAIM = f"-p {plugin.__name__} -p no:cacheprovider -k larger_world"
PAGE_FILES = {"verify.html", "verify.json", "junit.xml", "summary.md"}

PYTHON = f"""#!/bin/bash
case "$1 $2" in
  "-m pip") echo "${{*:3}}" >> "$LOG" ;;
  "-m venv") folder="${{@: -1}}"; mkdir -p "$folder/bin"; cp "$0" "$folder/bin/python"
             printf '#!/bin/bash\\necho "$@" >> "$LOG"\\n' > "$folder/bin/pip"; chmod +x "$folder/bin/pip" ;;
  *) exec {sys.executable} "$@" ;;
esac
"""
AGENT = '#!/bin/bash\necho "buildkite-agent $*" >> "$LOG"; cat > annotation.md\n'
SCONTROL = "#!/bin/bash\necho 127.0.0.1\n"
# Two tasks, told who they are as Slurm tells them; the greatest exit status is the step's.
SRUN = """#!/bin/bash
export SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=2 SLURM_NTASKS=2
SLURM_PROCID=1 SLURM_LOCALID=1 "$@" & second=$!
SLURM_PROCID=0 SLURM_LOCALID=0 "$@"; status=$?
wait $second; other=$?
exit $((status > other ? status : other))
"""


class Repository:
    """A repository that ``verify init`` has written to, and a shell in it."""

    def __init__(self, folder: Path, planted_bug: bool) -> None:
        self.folder, self.log = folder, folder / "log"
        programs = folder / "bin"
        programs.mkdir()
        stubs = {"python": PYTHON, "python3": PYTHON, "buildkite-agent": AGENT, "scontrol": SCONTROL, "srun": SRUN}
        for name, text in stubs.items():
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        self.variables = os.environ | {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "PYTEST_ADDOPTS": ONE_CLAIM,
            "GITHUB_STEP_SUMMARY": str(folder / "step-summary"),
            "GITHUB_ACTIONS": "true",
            "LOG": str(self.log),
            **({"PLANTED_BUG": "1"} if planted_bug else {}),
        }

    def run(self, script: str, **variables: str) -> tuple[int, str]:
        """A script as the services run one: it ends at the first command that fails."""
        done = subprocess.run(
            ["bash", "-e", "-c", script],
            cwd=self.folder, env=self.variables | variables, capture_output=True, text=True, timeout=240,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr


@pytest.fixture
def repository(tmp_path: Path, request: pytest.FixtureRequest) -> Repository:
    assert main(["init", str(tmp_path), "--ci", ",".join(CI)]) == 0
    return Repository(tmp_path, getattr(request, "param", False))


def github_job(repository: Repository) -> tuple[int, str]:
    """The steps of the workflow in order; after one that failed, only those that run always."""
    text = (repository.folder / ".github/workflows/verify.yml").read_text()
    given = dict(re.findall(r"^      ([A-Z]+): \$\{\{ inputs\.\w+ \|\| '(.*)' \}\}$", text, re.M))
    assert set(given) == {"TARGET", "DEVICE"}
    status, said = 0, ""
    for step in re.split(r"^      - ", text, flags=re.M)[1:]:
        script = re.search(r"^        run: (.*)$", step, re.M)
        if script is not None and (status == 0 or "if: always()" in step):
            ended, printed = repository.run(script[1], **given)
            status, said = status or ended, said + printed
    return status, said


@pytest.mark.parametrize(
    "repository",
    [pytest.param(False, id="right", marks=pytest.mark.nightly), pytest.param(True, id="planted bug")],
    indirect=True,
)
def test_the_workflow_runs_and_keeps_its_page(repository: Repository) -> None:
    planted = "PLANTED_BUG" in repository.variables
    status, said = github_job(repository)
    assert status == (1 if planted else 0), said
    kept = (repository.folder / ".github/workflows/verify.yml").read_text().rpartition("path: |")[2].split()
    assert set(kept) == PAGE_FILES
    assert all((repository.folder / name).stat().st_size for name in kept), said
    assert repository.log.read_text() == "install cfg-verify\n"
    summary = (repository.folder / "step-summary").read_text()
    assert summary.startswith("## ✗ fail" if planted else "## ✓ pass")
    annotations = [line for line in said.splitlines() if line.startswith("::error title=verify ")]
    assert [("step 3" in line, "%0A" in line) for line in annotations] == ([(True, True)] if planted else [])


@pytest.mark.nightly
@pytest.mark.parametrize("repository", [True], indirect=True, ids=["planted bug"])
def test_the_pipeline_annotates_and_fails(repository: Repository) -> None:
    text = (repository.folder / ".buildkite/verify.yml").read_text()
    target = re.search(r"^  TARGET: (.*)$", text, re.M)
    assert target is not None
    on_cpu, on_gpu = (re.findall(r"^      - (.*)$", step, re.M) for step in text.split("- label: ")[1:])
    # The agent takes $$ for $ as it reads the file.
    status, said = repository.run("\n".join(on_cpu).replace("$$", "$"), TARGET=target[1])
    assert status == 1, said
    assert (repository.folder / "annotation.md").read_text().startswith("## ✗ fail")
    assert repository.log.read_text() == "install -q cfg-verify\nbuildkite-agent annotate --context verify-cpu\n"
    if not torch.cuda.is_available():  # An agent that has lost its GPUs is red, not green for want of claims.
        status, said = repository.run("\n".join(on_gpu).replace("$$", "$"), TARGET=target[1])
        assert status == 1, said
        assert "--require-gpus forbids skipping" in said


@pytest.mark.nightly
def test_the_batch_script_judges_its_tasks(repository: Repository) -> None:
    job = {"SLURM_JOB_ID": "7001", "SLURM_JOB_NODELIST": "node1", "DEVICE": "cpu"}
    status, said = repository.run("./verify.slurm.sh", **job)
    assert status == 0, said
    assert "1 replica of 2 ranks" in said
    assert {path.name for path in repository.folder.glob("verify-*")} == {"verify-7001.json", "verify-7001.html"}
