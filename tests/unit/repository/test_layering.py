"""What may import what: the order in which data flows, read from the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PACKAGE = ROOT / "verify"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# Whatever is named later may import what is named before it, never the reverse.
ORDER = [
    *["text", "errors", "options", "surroundings"],
    *["verdict", "bits", "schedule", "request", "combine", "protocols", "bagel", "loops"],
    *[
        "ranks",
        "trace",
        "checks",
        "oracle",
        "report",
        "targets",
        "tasks",
        "runner",
        "fuzz",
        "envelope",
        "faults",
        "bench",
    ],
    *["commands", "gate"],
]
MOST_LINES = 300
# Longer than that, for now; whoever shortens one strikes it from this list.
LONG: set[str] = set()


def part_of(module: str) -> str:
    """``verify.checks.finite`` belongs to ``checks``; the package itself to nothing."""
    return module.split(".")[1] if "." in module else ""


def imported(source: str, with_types: bool = False) -> Iterator[str]:
    """Full names of the modules that a source imports anywhere, functions included; those for types only if asked."""
    for node in _nodes(ast.parse(source), with_types):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written in full"
            assert node.module is not None
            # A name imported from a package may be a module of it.
            yield from [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]


def _nodes(tree: ast.AST, with_types: bool) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not with_types:
            continue
        yield node
        yield from _nodes(node, with_types)


def files_of(part: str) -> list[Path]:
    found = [path for path in SOURCES if path.relative_to(PACKAGE).parts[0] in (part, f"{part}.py")]
    assert found, part
    return found


@lru_cache
def imports_of(part: str) -> set[str]:
    return {name for path in files_of(part) for name in imported(path.read_text())}


def within(names: set[str], package: str) -> set[str]:
    return {name for name in names if name == package or name.startswith(f"{package}.")}


def test_the_reader_of_imports_reads_them() -> None:
    source = "import a.b\nfrom c import d\nif TYPE_CHECKING:\n    import e\ndef f():\n    from g.h import i\n"
    assert list(imported(source)) == ["a.b", "c", "c.d", "g.h", "g.h.i"]
    assert "e" in list(imported(source, with_types=True))


def test_every_part_has_its_place() -> None:
    parts = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in SOURCES} - {"__init__", "__main__"}
    assert parts == set(ORDER)
    assert len(ORDER) == len(set(ORDER))


@pytest.mark.parametrize("part", ORDER)
def test_nothing_imports_what_comes_after_it(part: str) -> None:
    parts = {part_of(name) for name in within(imports_of(part), "verify")} & set(ORDER)
    later = parts & set(ORDER[ORDER.index(part) + 1 :])
    assert later == set(), f"{part} imports {', '.join(sorted(later))}"


@pytest.mark.parametrize("part", ["errors", "schedule", "request", "combine", "bits", "verdict", "protocols", "loops",
                                  "trace", "checks", "report", "oracle"])  # fmt: skip
def test_only_ranks_and_their_users_know_torch_distributed(part: str) -> None:
    assert within(imports_of(part), "torch.distributed") == set()


def test_checks_know_traces_and_not_ranks() -> None:
    parts = {part_of(name) for name in within(imports_of("checks"), "verify")}
    assert parts <= {"", "bits", "checks", "request", "schedule", "trace", "verdict"}


def test_loops_know_a_denoiser_and_a_group() -> None:
    parts = {part_of(name) for name in within(imports_of("loops"), "verify")}
    assert parts <= {"", "combine", "loops", "protocols", "request"}


def test_the_report_knows_verdicts_only() -> None:
    parts = {part_of(name) for name in within(imports_of("report"), "verify")}
    assert parts <= {"", "bits", "errors", "report", "text", "verdict"}
    assert within(imports_of("report"), "torch") == set()


def test_the_oracle_does_without_torch() -> None:
    """And without the formulas that it is there to check."""
    names = imports_of("oracle")
    assert within(names, "torch") == set()
    assert {part_of(name) for name in within(names, "verify")} <= {"", "errors", "oracle"}


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
        assert getattr(verify, name).__name__ == name
    with pytest.raises(AttributeError, match="module 'verify' has no attribute 'nothing'"):
        _ = verify.nothing
