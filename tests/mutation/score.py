"""Mutation testing of the verifier itself: ``python tests/mutation/score.py``, or ``tox run -e mutation``.

mutmut changes one thing at a time in the files that ``[tool.mutmut]`` in pyproject.toml names, and runs the unit tests
that reach it. A change that no test notices survives. ``explained.toml`` says of each survivor why nothing could notice
it; one that is not explained there is a test that is missing.

Exit status 0: every file reaches the score, and every explanation is of a mutant that survived. 1: not so. 2: mutmut
did not run.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from msgspec import to_builtins

from verify.ranks.settings import environment
from verify.report.disk import write_whole
from verify.report.documents.parts import SCHEMA, Made

ROOT = Path(__file__).parents[2]
EXPLAINED = Path(__file__).with_name("explained.toml")
RESULT = ROOT / "fixtures" / "results" / "mutation.json"
COMMAND = "tox run -e mutation"
LEAST_SCORE = 95.0
UNEXPLAINED = "not explained: a test is missing"
SEVERAL_RUNS = (
    "made by several runs of mutmut, each of the functions that had changed and the mutants that had survived"
)
# Of the whole run: mutmut bounds each mutant by itself.
TIMEOUT_S = 3 * 3600
# What mutmut writes down: the exit status of pytest, or what ended it. A mutant that hangs is noticed.
_KILLED, _TIMED_OUT = (1, 3), (-24, 24, 36, 152, 255)
_KEY = re.compile(r"x(?:ǁ(?P<owner>[^ǁ]+)ǁ|_)(?P<function>.+)__mutmut_(?P<number>\d+)")


@dataclass(frozen=True, order=True)
class Survivor:
    """A mutant that no test noticed.

    Attributes:
        file: the source file, relative to the checkout.
        line: where the mutation begins.
        function: ``Class.method`` or ``function``.
        was: the source there, line breaks removed.
        becomes: the same, mutated.
    """

    file: str
    line: int
    function: str
    was: str
    becomes: str

    @property
    def identity(self) -> tuple[str, str, str, str]:
        """What an explanation names: everything but the line, which moves."""
        return self.file, self.function, self.was, self.becomes


@dataclass(frozen=True)
class Counts:
    """How the mutants of one file ended."""

    file: str
    killed: int
    timed_out: int
    survivors: tuple[Survivor, ...]

    @property
    def mutants(self) -> int:
        """All of them."""
        return self.killed + self.timed_out + len(self.survivors)


def counts_of(source: Path, mutated: Path, name: str) -> Counts:
    """Reads mutmut's notes beside ``mutated`` on the mutants of ``source``, which is called ``name``.

    Raises:
        ValueError: a mutant was not run.
    """
    statuses: Mapping[str, int | None] = json.loads(_beside(mutated, ".meta"))["exit_code_by_key"]
    if None in statuses.values():
        raise ValueError(f"{name}: {list(statuses.values()).count(None)} mutants were not run")
    survived = [key for key, status in statuses.items() if status not in (*_KILLED, *_TIMED_OUT)]
    spans: Mapping[str, Sequence[int]] = json.loads(_beside(mutated, ".spans"))["spans"]
    lines, at = mutated.read_text(encoding="utf-8").splitlines(), _functions(source.read_text(encoding="utf-8"))
    found = []
    for key in survived:
        mangled = key.rpartition(".")[2]
        match = _KEY.fullmatch(mangled)
        assert match is not None, key
        function = f"{match['owner']}.{match['function']}" if match["owner"] else match["function"]
        original, changed = (
            _text(lines, spans[f"{mangled[: match.start('number')]}{which}"], match)
            for which in ("orig", match["number"])
        )
        first, was, becomes = _difference(original, changed)
        definition = next(i for i, line in enumerate(original) if line.lstrip().startswith("def "))
        found.append(Survivor(name, at[function] + first - definition, function, was, becomes))
    ended = Counter(statuses.values())
    killed, timed_out = (sum(ended[status] for status in kind) for kind in (_KILLED, _TIMED_OUT))
    return Counts(name, killed, timed_out, tuple(sorted(found)))


def _beside(mutated: Path, suffix: str) -> str:
    return mutated.with_name(mutated.name + suffix).read_text(encoding="utf-8")


def _functions(source: str) -> dict[str, int]:
    """The line of each function's ``def``, by its name within the file."""
    found: dict[str, int] = {}
    for node in ast.parse(source).body:
        members = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
        found |= {f"{prefix}{member.name}": member.lineno for member in members if isinstance(member, ast.FunctionDef)}
    return found


def _text(lines: Sequence[str], span: Sequence[int], match: re.Match[str]) -> list[str]:
    """One copy of a function as mutmut wrote it, under the name that it had."""
    mangled = re.compile(rf"\b{re.escape(match.string[: match.start('number')])}\w+")
    return [mangled.sub(match["function"], line) for line in lines[span[0] - 1 : span[1]]]


def _difference(original: Sequence[str], changed: Sequence[str]) -> tuple[int, str, str]:
    """Where two copies begin to differ, and what either has there until they are equal again."""
    shorter = min(len(original), len(changed))
    first = next((i for i in range(shorter) if original[i] != changed[i]), shorter)
    last = next((i for i in range(shorter - first) if original[-1 - i] != changed[-1 - i]), shorter - first)
    was, becomes = (
        " ".join(line.strip() for line in copy[first : len(copy) - last]) for copy in (original, changed)
    )  # fmt: skip
    return first, was, becomes


def explanations(path: Path = EXPLAINED) -> dict[tuple[str, str, str, str], str]:
    """Why each survivor can survive, by its identity.

    Raises:
        ValueError: one is told twice, or without a reason.
    """
    found: dict[tuple[str, str, str, str], str] = {}
    for entry in tomllib.loads(path.read_text(encoding="utf-8")).get("survivor", []):
        identity = entry["file"], entry["function"], entry["was"], entry["becomes"]
        if identity in found or not entry["why"].strip():
            raise ValueError(f"explained twice, or without a reason: {identity}")
        found[identity] = " ".join(entry["why"].split())
    return found


def judged(
    counts: Iterable[Counts], explained: Mapping[tuple[str, str, str, str], str]
) -> tuple[dict[str, Any], list[str]]:
    """The tables of the document, and what is wrong: a file below the score, a stale explanation."""
    complaints, files, told = [], [], []
    seen: set[tuple[str, str, str, str]] = set()
    counts = list(counts)
    for count in counts:
        known = [survivor for survivor in count.survivors if survivor.identity in explained]
        seen |= {survivor.identity for survivor in known}
        noticed = count.killed + count.timed_out
        counted = count.mutants - len(known)
        # A file without anything to kill proves nothing.
        score = 100.0 * noticed / counted if counted else 0.0
        if score < LEAST_SCORE:
            complaints.append(f"{count.file}: {noticed} of {counted} mutants killed, {score:.1f} %")
        files.append(
            {
                "file": count.file,
                "mutants": count.mutants,
                "killed": count.killed,
                "timed_out": count.timed_out,
                "survived": len(count.survivors),
                "explained": len(known),
                "score_%": round(score, 2),
            }
        )
        told += [
            {
                "file": survivor.file,
                "line": survivor.line,
                "mutation": f"{survivor.was} → {survivor.becomes}",
                "why_nothing_notices": explained.get(survivor.identity, UNEXPLAINED),
            }
            for survivor in count.survivors
        ]
    complaints += [f"stale explanation, no such mutant survived: {identity}" for identity in set(explained) - seen]
    return {"files": files, "survivors": told}, complaints


def document(
    tables: Mapping[str, Any], complaints: Sequence[str], here: Mapping[str, Any], seconds: float | None
) -> dict[str, Any]:
    """The JSON form: totals, one row a file and one a survivor. ``seconds``: of the one run it is from."""
    total = {key: sum(row[key] for row in tables["files"]) for key in ("mutants", "killed", "timed_out", "explained")}
    noticed, counted = total["killed"] + total["timed_out"], total["mutants"] - total["explained"]
    return {
        "schema": SCHEMA,
        "made": to_builtins(Made.now()),
        "kind": "mutation",
        "command": COMMAND,
        "verdict": "fail" if complaints else "pass",
        "environment": [dict(here)],
        "notes": [
            "mutmut leaves module-level constants, defaults of dataclass fields, properties, and what is inside len() "
            "and isinstance() as they are",
            *([] if seconds is not None else [SEVERAL_RUNS]),
        ],
        "tool": f"mutmut {_version()}",
        **total,
        "score": f"{100 * noticed / counted if counted else 0.0:.2f} % of the mutants that are not explained",
        **({} if seconds is None else {"minutes": round(seconds / 60, 1)}),
        **tables,
    }


def _version() -> str:
    try:
        return metadata.version("mutmut")
    except metadata.PackageNotFoundError:  # Only where mutmut was not run here.
        return "unknown"


def configured(root: Path) -> dict[str, Any]:
    """What pyproject.toml tells mutmut."""
    return dict(tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mutmut"])


def mutated_files(root: Path) -> list[Path]:
    """The files that mutmut is told to mutate, relative to ``root``."""
    patterns = configured(root)["only_mutate"]
    return [path.relative_to(root) for pattern in patterns for path in sorted(root.glob(pattern))]


def run_mutmut(root: Path) -> None:
    """Runs mutmut from nothing: it keeps verdicts of an earlier run, whatever tests have changed since.

    Raises:
        subprocess.SubprocessError: it ended with another status than 0, or took too long.
    """
    shutil.rmtree(root / "mutants", ignore_errors=True)
    command = [str(Path(sys.executable).with_name("mutmut")), "run", "--max-children", str(os.cpu_count() or 1)]
    subprocess.run(command, cwd=root, check=True, timeout=TIMEOUT_S)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs mutmut, judges what it found, and writes it down."""
    parser = argparse.ArgumentParser(description="Mutation testing of the verifier itself.")
    parser.add_argument(
        "--json", type=Path, default=RESULT, help=f"where to write (default {RESULT.relative_to(ROOT)})"
    )
    parser.add_argument("--judge-only", action="store_true", help="judge what an earlier run left in mutants/")
    parsed = parser.parse_args(arguments)
    began = time.monotonic()
    try:
        if not parsed.judge_only:
            run_mutmut(ROOT)
    except (OSError, subprocess.SubprocessError) as error:
        print(f"mutmut did not run: {error}", file=sys.stderr)
        return 2
    seconds = None if parsed.judge_only else time.monotonic() - began
    counts = [counts_of(ROOT / file, ROOT / "mutants" / file, file.as_posix()) for file in mutated_files(ROOT)]
    tables, complaints = judged([count for count in counts if count.mutants], explanations())
    made = document(tables, complaints, _environment(), seconds)
    write_whole(parsed.json, json.dumps(made, indent=1, ensure_ascii=False) + "\n")
    for row in tables["files"]:
        print(", ".join(f"{key} {value}" for key, value in row.items()))
    for row in tables["survivors"]:
        if row["why_nothing_notices"] == UNEXPLAINED:
            print(f"{row['file']}:{row['line']}: survived: {row['mutation']}")
    print("\n".join([*complaints, f"{made['score']}: {made['verdict']}"]))
    return 1 if complaints else 0


def _environment() -> dict[str, Any]:
    found = environment(torch.device("cpu"), "gloo")
    return {key: found[key] for key in ("python", "torch", "cpu")}


if __name__ == "__main__":
    sys.exit(main())
