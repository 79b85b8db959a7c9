"""What ``--loop`` and ``--target`` point at: found, or told in one line why not."""

from __future__ import annotations

import compileall
import importlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from verify.errors import BadInput
from verify.targets.loading import load_loop, load_object

SIGNATURE = "loop(denoiser, request, x_0, group, observe) -> x_final"


@pytest.fixture(autouse=True)
def _as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty current folder; imports and the path as before."""
    path = list(sys.path)
    monkeypatch.chdir(tmp_path)
    yield
    assert sys.path == path, "loading leaves the path as it was"
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    importlib.invalidate_caches()
    return path


LOOP = "def mine(denoiser, request, x_0, group, observe):\n    return x_0\n"


def refusal(reference: str) -> str:
    with pytest.raises(BadInput) as caught:
        load_loop(reference)
    return str(caught.value)


@pytest.mark.parametrize("how", ["absolute", "relative", "bare", "in a folder", "with a colon in its path"])
def test_a_function_of_a_file(tmp_path: Path, how: str) -> None:
    inside = {"in a folder": "folder", "with a colon in its path": "a:b"}.get(how, "")
    write(tmp_path / inside / "loops.py", LOOP)
    place = {"absolute": f"{tmp_path}/", "relative": "./"}.get(how, f"{inside}/" if inside else "")
    loop = load_loop(f"{place}loops.py:mine")
    assert loop(None, None, "x_0", None, None) == "x_0"


def test_a_function_of_a_module() -> None:
    assert load_loop("verify.loops:local").__name__ == "local"
    assert load_object("--target", "verify.schedule:BROADCAST") == "broadcast"


def test_a_module_in_the_current_folder(tmp_path: Path) -> None:
    """As ``python -m verify`` finds it, so does ``verify``."""
    write(tmp_path / "a_package" / "__init__.py", "")
    write(tmp_path / "a_package" / "loops.py", LOOP)
    sys.path[:], kept = [p for p in sys.path if p not in ("", os.getcwd())], list(sys.path)
    try:
        assert callable(load_loop("a_package.loops:mine"))
    finally:
        sys.path[:] = kept


def test_a_file_imports_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path / "there" / "a_neighbour.py", "VALUE = 3\n")
    write(tmp_path / "there" / "loops.py", "from a_neighbour import VALUE\n" + LOOP)
    assert load_object("--loop", "there/loops.py:VALUE") == 3


def test_a_link_finds_the_neighbours_of_the_file_it_leads_to(tmp_path: Path) -> None:
    write(tmp_path / "there" / "another_neighbour.py", "VALUE = 3\n")
    write(tmp_path / "there" / "loops.py", "from another_neighbour import VALUE\n" + LOOP)
    (tmp_path / "link.py").symlink_to(tmp_path / "there" / "loops.py")
    assert load_object("--loop", "link.py:VALUE") == 3


def test_a_file_is_kept_while_its_bytes_stay(tmp_path: Path) -> None:
    """What a loop keeps in its own globals lives from request to request, as in an engine."""
    write(tmp_path / "loops.py", "SEEN = []\n")
    first = load_object("--loop", "loops.py:SEEN")
    os.utime(tmp_path / "loops.py", (1, 1))
    assert load_object("--loop", "./loops.py:SEEN") is first


@pytest.mark.parametrize("edited", ["loops.py", "a_near_one.py", "near/__init__.py", "near/deep.py"])
def test_an_edit_is_noticed(tmp_path: Path, edited: str) -> None:
    """Also one within a second that leaves the size as it was, which bytecode would hide; and in a second loop file."""
    write(tmp_path / "near" / "__init__.py", "VALUE = 1\n")
    write(tmp_path / "near" / "deep.py", "VALUE = 1\n")
    write(tmp_path / "a_near_one.py", "VALUE = 1\n")
    head = "import a_near_one, near, near.deep\n"
    read = "def read():\n    return OWN + a_near_one.VALUE + near.VALUE + near.deep.VALUE\nOWN = 1\n"
    files = [write(tmp_path / name, head + read) for name in ("loops.py", "others.py")]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.py")}
    assert [load_object("--loop", f"{path}:read")() for path in files] == [4, 4]
    changed = tmp_path / edited
    changed.write_text(changed.read_text().replace("OWN = 1", "OWN = 3").replace("VALUE = 1", "VALUE = 3"))
    os.utime(changed, ns=(before[changed], before[changed]))
    assert load_object("--loop", "loops.py:read")() == 6
    assert load_object("--loop", "others.py:read")() == (4 if edited == "loops.py" else 6)


def test_an_edited_module_is_imported_again(tmp_path: Path) -> None:
    write(tmp_path / "an_edited_module.py", "VALUE = 1\n")
    assert load_object("--loop", "an_edited_module:VALUE") == 1
    first = sys.modules["an_edited_module"]
    assert load_object("--loop", "an_edited_module:VALUE") == 1
    assert sys.modules["an_edited_module"] is first
    write(tmp_path / "an_edited_module.py", "VALUE = 2\n")
    assert load_object("--loop", "an_edited_module:VALUE") == 2


def test_what_was_imported_before_is_no_neighbour(tmp_path: Path) -> None:
    """A library that happens to lie in the same folder is not dropped under the feet of others."""
    write(tmp_path / "a_library.py", "VALUE = 1\n")
    sys.path.insert(0, str(tmp_path))
    first = importlib.import_module("a_library")
    sys.path.remove(str(tmp_path))
    write(tmp_path / "loops.py", "import a_library\nNAME = 1\n")
    assert load_object("--loop", "loops.py:NAME") == 1
    write(tmp_path / "loops.py", "import a_library\nNAME = 2\n")
    assert load_object("--loop", "loops.py:NAME") == 2
    assert sys.modules["a_library"] is first


def test_files_of_one_name_are_kept_apart(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write(tmp_path / folder / "loops.py", f"NAME = {folder!r}\n")
    assert [load_object("--loop", f"{folder}/loops.py:NAME") for folder in ("a", "b")] == ["a", "b"]


def test_classes_may_be_defined_in_a_file(tmp_path: Path) -> None:
    """A dataclass asks sys.modules for the module it is in."""
    head = "from __future__ import annotations\nfrom dataclasses import dataclass\n"
    write(tmp_path / "loops.py", head + "@dataclass\nclass Thing:\n    a: int\n")
    assert load_object("--loop", "loops.py:Thing")(3).a == 3


@pytest.mark.parametrize("reference", ["", "local", "loops.py", ":name", "loops.py:", "loops.py:a b", "loops.py:a.b"])
def test_malformed(reference: str) -> None:
    assert refusal(reference) == (
        f"--loop is {reference!r}, expected FILE.py:NAME or PACKAGE.MODULE:NAME; separate the two by a colon"
    )


@pytest.mark.parametrize(
    "place", ["absent.py", "absent/loop.py", "absent/loop", "folder.py", "circle.py", "x" * 300 + ".py"]
)
def test_no_such_file(tmp_path: Path, place: str) -> None:
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "circle.py").symlink_to(tmp_path / "circle.py")
    said = refusal(f"{place}:mine")
    assert said.endswith(", expected a Python file; there is no such file; check the path")
    assert said.startswith(f"--loop is '{place}"[:100])


def test_a_path_that_holds_no_path() -> None:
    assert refusal("a\0b.py:mine").endswith("expected a Python file; there is no such file; check the path")


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    write(tmp_path / "loops.txt", LOOP)
    said = refusal("./loops.txt:mine")
    assert said == "--loop is './loops.txt', expected a Python file; name one that ends in .py"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import nothing_of_this_name\n", "ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)\n", "SystemExit: 3"),
        ("import sys\ndel sys.modules[__name__]\nraise KeyError('x')\n", "KeyError: 'x'"),
        ("import sys\nsys.path.clear()\n1 / 0\n", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_file_that_cannot_be_imported(tmp_path: Path, text: str, reason: str) -> None:
    write(tmp_path / "loops.py", text)
    kept = list(sys.path)
    try:
        said = refusal("loops.py:mine")
    finally:
        sys.path[:] = kept
    assert said == f"--loop is 'loops.py', expected something that can be imported; {reason}"


def test_a_file_with_a_syntax_error(tmp_path: Path) -> None:
    write(tmp_path / "loops.py", "def mine(:\n")
    said = refusal("loops.py:mine")
    assert said.startswith("--loop is 'loops.py', expected something that can be imported; SyntaxError: ")
    assert "loops.py, line 1" in said and "\n" not in said


def test_a_file_that_failed_leaves_no_module(tmp_path: Path) -> None:
    write(tmp_path / "loops.py", "1 / 0\n")
    before = set(sys.modules)
    refusal("loops.py:mine")
    assert set(sys.modules) == before


def test_an_interrupt_is_no_bad_input(tmp_path: Path) -> None:
    for place in ("loops.py", "some_loops"):
        write(tmp_path / "loops.py", "raise KeyboardInterrupt\n")
        write(tmp_path / "some_loops.py", "raise KeyboardInterrupt\n")
        with pytest.raises(KeyboardInterrupt):
            load_loop(f"{place}:mine")


@pytest.mark.parametrize("place", ["nothing_of_this_name", "verify.nothing", "..loops", "a b", "loops."])
def test_no_such_module(place: str) -> None:
    said = refusal(f"{place}:mine")
    assert said.startswith(f"--loop is {place!r}, expected something that can be imported; ")


def test_no_such_name(tmp_path: Path) -> None:
    text = "from math import sqrt\nimport os\n_hidden = print\nNUMBER = 3\n" + LOOP + LOOP.replace("mine", "other")
    write(tmp_path / "loops.py", text)
    assert refusal("loops.py:yours") == (
        "--loop is 'loops.py:yours', expected a name that loops.py defines; it defines mine, other; correct the name"
    )
    write(tmp_path / "empty.py", "NUMBER = 3\n")
    assert refusal("empty.py:mine").endswith("; it defines no public function; correct the name")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mine = 3\n", f"a function {SIGNATURE}; it is a int"),
        ("def mine(denoiser, request): ...\n", "arguments do not fit it (too many positional arguments)"),
        ("def mine(a, b, c, d, e, f): ...\n", "do not fit it (missing a required argument: 'f')"),
        ("def mine(a, b, c, d, *, e): ...\n", "do not fit it (too many positional arguments)"),
        ("async def mine(a, b, c, d, e): ...\n", f"a plain function {SIGNATURE}; make it neither async nor yield"),
        ("def mine(a, b, c, d, e):\n    yield\n", f"a plain function {SIGNATURE}; make it neither async nor yield"),
    ],
)
def test_what_is_no_loop(tmp_path: Path, text: str, said: str) -> None:
    write(tmp_path / "loops.py", text)
    assert refusal("loops.py:mine").startswith("--loop is 'loops.py:mine', expected a")
    assert refusal("loops.py:mine").endswith(said)


@pytest.mark.parametrize(
    "text",
    [
        "def mine(*anything): ...\n",
        "def mine(a, b, c, d, e, f=None, **more): ...\n",
        "class Mine:\n    def __call__(self, a, b, c, d, e): ...\nmine = Mine()\n",
        "from functools import partial\ndef loop(z, a, b, c, d, e): ...\nmine = partial(loop, 0)\n",
        "mine = max\n",
    ],
)
def test_what_can_be_called_with_five_is_a_loop(tmp_path: Path, text: str) -> None:
    write(tmp_path / "loops.py", text)
    assert callable(load_loop("loops.py:mine"))


def test_a_file_is_run_as_it_is_now_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    """Python takes bytecode of the same second and size for that of the file."""
    path = write(tmp_path / "loops.py", "VALUE = 3\n")
    moment = path.stat()
    compileall.compile_file(path, quiet=1)
    assert (tmp_path / "__pycache__").is_dir()
    path.write_text("VALUE = 4\n")
    os.utime(path, ns=(moment.st_atime_ns, moment.st_mtime_ns))
    assert load_object("--loop", "loops.py:VALUE") == 4
    shutil.rmtree(tmp_path / "__pycache__")
    assert load_object("--loop", "loops.py:VALUE") == 4
    assert [entry.name for entry in tmp_path.iterdir()] == ["loops.py"]


def test_exceptions_that_cannot_be_shown_and_odd_modules(tmp_path: Path) -> None:
    odd = "class Odd(BaseException):\n    def __str__(self):\n        raise RuntimeError\n"
    write(tmp_path / "loops.py", odd + "raise Odd\n")
    assert refusal("loops.py:mine") == "--loop is 'loops.py', expected something that can be imported; Odd"
    write(tmp_path / "loops.py", "def __getattr__(name):\n    raise RuntimeError('no ' + name)\n")
    assert refusal("loops.py:mine").endswith("expected a name that loops.py defines; RuntimeError: no mine")
