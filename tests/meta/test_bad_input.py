"""Bad input of every kind: one line that names it, exit status 2, no traceback, and nothing written."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import bad_files
import bad_rows
import pytest
from bad_rows import Row

from verify.commands.cli import main
from verify.errors import BadInput
from verify.gate.plugin import pytest_configure
from verify.ranks.local.pool import RankPool
from verify.report import progress
from verify.request import DenoiseRequest

ROOT = Path(__file__).parents[2]
ROWS = [*bad_rows.ROWS, *bad_files.ROWS]
SECONDS = 240.0
# The value, what was expected and the fix; or the same in the words of argparse, which ends in where to look.
FORM = re.compile(r".+, expected .+; .+|.+(invalid \w+ value|invalid choice|expected|required).+; see verify.* --help")


def contents(folder: Path) -> dict[str, bytes | str]:
    """Every file, link and folder below ``folder`` and what it holds."""
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        held = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else ""
        found[str(path.relative_to(folder))] = held
    return found


def the_line(errors: str) -> str:
    """What is said of bad input, after checks that it is one readable line and no more."""
    assert errors.startswith("verify: ") and errors.endswith("\n"), errors
    line = errors.removeprefix("verify: ").removesuffix("\n")
    assert line.isprintable(), errors
    assert len(line) <= 1000
    assert "Traceback" not in line
    assert FORM.fullmatch(line), line
    return line


def test_there_are_enough_rows_and_each_has_a_name_of_its_own() -> None:
    assert len(ROWS) >= 80
    assert len({row.what for row in ROWS}) == len(ROWS)
    assert all(row.says for row in ROWS)


def never(*_: object, **__: object) -> NoReturn:
    raise AssertionError("ranks were started for what could be refused without them")


@pytest.mark.parametrize("row", ROWS, ids=[row.what for row in ROWS])
def test_bad_input(
    row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    row.make(tmp_path)
    before = contents(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 1e9)  # How slow the machine is does not belong here.
    if not row.ranks:
        monkeypatch.setattr(RankPool, "start", never)
    for name, value in row.variables:
        monkeypatch.setenv(name, value)
    status = main(row.arguments(tmp_path))
    said = capfd.readouterr()
    assert (status, said.out) == (2, ""), said.err
    line = the_line(said.err)
    for fragment in row.says:
        assert fragment in line
    assert contents(tmp_path) == before


SHELL = [
    Row("a flag", "run --seed x", ("'x'", "int")),
    Row("threads", "run", ("OMP_NUM_THREADS", "'abc'"), variables=(("OMP_NUM_THREADS", "abc"),)),
    Row("a checkpoint", "run --checkpoint absent", ("'absent'",)),
    next(row for row in ROWS if row.what == "loop: observes twice"),
]


@pytest.mark.parametrize(
    "row", [pytest.param(row, id=row.what, marks=() if n < 2 else pytest.mark.nightly) for n, row in enumerate(SHELL)]
)
def test_bad_input_from_a_shell(row: Row, tmp_path: Path) -> None:
    """As users meet it: libraries too are silent."""
    row.make(tmp_path)
    before = contents(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "verify", *row.arguments(tmp_path)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | dict(row.variables),
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    line = the_line(done.stderr)
    assert all(fragment in line for fragment in row.says)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("height", "128"),
        ("height", None),
        ("height", 128.0),
        ("width", True),
        ("num_timesteps", [50]),
        ("seed", 1.5),
        ("timestep_shift", "3"),
        ("timestep_shift", 1j),
        ("cfg_text_scale", None),
        ("cfg_img_scale", float("nan")),
        ("cfg_interval", 0.4),
        ("cfg_interval", ()),
        ("cfg_interval", ("0", "1")),
        ("cfg_renorm_type", b"global"),
        ("cfg_renorm_min", {}),
    ],
)
def test_fields_of_a_wrong_type(field: str, value: object) -> None:
    """Only from Python: every option of the command line has a type of its own."""
    with pytest.raises(BadInput) as caught:
        DenoiseRequest(**{field: value})  # type: ignore[arg-type]
    line = the_line(f"verify: {caught.value}\n")
    assert line.startswith(f"{field} is {value!r}, expected ")


GOOD = {
    "a transposed x_t": "return local(denoiser, request, x_0, group, lambda s, x: observe(s, x.t().contiguous().t()))",
    "a view": "return torch.cat([local(denoiser, request, x_0, group, observe), x_0])[: len(x_0)]",
    "a view of every other row": "return local(denoiser, request, x_0, group, observe).repeat_interleave(2, 0)[::2]",
}


@pytest.mark.usefixtures("judged_once")
@pytest.mark.parametrize("what", GOOD)
def test_what_looks_odd_and_is_right(what: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    loop = tmp_path / "l.py"
    loop.write_text(bad_files.HEAD + GOOD[what])
    command = ["run", "--loop", f"{loop}:loop", "--requests", "one", *shlex.split(bad_files.SHORT)]
    assert main(command) == 0, capfd.readouterr()


def test_a_loop_that_raises_is_unknown_and_shown_with_its_rank(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    loop = tmp_path / "l.py"
    loop.write_text(bad_files.HEAD + "if group.rank == 1: raise ValueError('mine')\n    return " + bad_files.ALL)
    assert main(["run", "--loop", f"{loop}:loop", *shlex.split(bad_files.SHORT)]) == 3
    said = capfd.readouterr().out
    assert "rank 1 raised ValueError: mine" in said
    assert f'File "{loop}", line 4, in loop' in said
    assert str(ROOT / "verify") not in said.split("rank 0")[0]  # No line of ours in the traceback.


OPTIONS = [
    ({"target": "nonsense"}, ("--target", "'nonsense'", "builtin")),
    ({"preset": "huge"}, ("'huge'", "tiny, small, 7b")),
    ({"device": "tpu"}, ("--device", "'tpu'", "cpu, cuda")),
    ({"backend": "mpi"}, ("--backend", "'mpi'", "gloo, nccl")),
    ({"world_size": 0}, ("--world-size", "0", "from 1 to 64")),
    ({"require_gpus": -1}, ("--require-gpus", "-1", "from 0 to 64")),
]


@pytest.mark.parametrize(("options", "says"), OPTIONS)
def test_options_of_pytest(options: dict[str, object], says: tuple[str, ...]) -> None:
    given = {f"verify_{name}": value for name, value in ({"target": "builtin"} | options).items()}
    config: Any = SimpleNamespace(
        option=SimpleNamespace(**given, collectonly=True), stash={}, getoption=lambda *_: None
    )
    config.pluginmanager = SimpleNamespace(register=lambda plugin: None)
    with pytest.raises(pytest.UsageError) as caught:
        pytest_configure(config)
    line = the_line(f"verify: {caught.value}\n")
    assert all(fragment in line for fragment in says)


def test_pytest_itself_says_it_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "verify.gate.plugin", "--verify-target", "nonsense"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert [line for line in (done.stdout + done.stderr).splitlines() if line] == [
        "ERROR: --target is 'nonsense', expected builtin, vllm_omni, vllm_omni_family, vllm_omni_lance, FILE.py:NAME "
        "or PACKAGE.MODULE:NAME; name one of these"
    ]
