"""Who imports whom, how long files are, and what is loaded without PyTorch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PACKAGE = ROOT / "verify"
SOURCES = sorted(PACKAGE.rglob("*.py"))
MOST_LINES = 300
# Longer than that, for now; whoever shortens one strikes it from this list.
LONG: set[str] = set()


def test_data_flows_one_way(capfd: pytest.CaptureFixture[str]) -> None:
    """The contracts of import-linter in pyproject.toml, which hold through any number of modules."""
    cli = pytest.importorskip("importlinter.cli", reason="import-linter is not installed; tox run -e lint runs it")
    status = cli.lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True)
    assert status == 0, capfd.readouterr().out


@pytest.mark.parametrize("part", ["errors", "schedule", "request", "combine", "bits", "verdict", "protocols", "loops",
                                  "checks", "report", "oracle"])  # fmt: skip
def test_only_ranks_and_their_users_know_torch_distributed(part: str) -> None:
    files = [path for path in SOURCES if path.relative_to(PACKAGE).parts[0] in (part, f"{part}.py")]
    assert files
    assert [path for path in files if "torch.distributed" in path.read_text()] == []


def test_files_can_be_read_in_one_go() -> None:
    lines = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in SOURCES}
    assert {name for name, count in lines.items() if count > MOST_LINES} == LONG


def loads_torch(statement: str) -> bool:
    """Whether a fresh interpreter has torch after it."""
    code = f"import sys\n{statement}\nprint('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )  # fmt: skip
    return {"True\n": True, "False\n": False}[done.stdout]


def test_the_package_and_its_command_line_load_without_torch() -> None:
    """Which takes seconds: ranks load it while the command line still reads its options."""
    parse = "import verify, verify.commands.cli as cli, verify.errors; cli._parse(['run', '--seed', '3'])"
    assert not loads_torch(parse)


def test_names_of_the_package_are_loaded_when_they_are_used() -> None:
    import verify

    for name in verify.__all__:
        assert getattr(verify, name).__name__ == {"Report": "RunReport"}.get(name, name)
    with pytest.raises(AttributeError, match="module 'verify' has no attribute 'nothing'"):
        _ = verify.nothing
