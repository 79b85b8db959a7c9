"""``python -m verify.report.results``: RESULTS.md, and the README's results, from the files under fixtures/results.

Files are taken in the order of their names. A ``.json`` file is a document that some command wrote with ``--json`` and
becomes a section; a ``.md`` file is written by hand and is taken as it stands: findings and explanations.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from verify.errors import BadInput
from verify.report.document import validate, write_whole
from verify.report.environment import whose
from verify.report.sections import kind_of, section_of
from verify.report.tables import markdown_section, markdown_text

COMMAND = "python -m verify.report.results"
_PREFACE = f"""# Results

Written by `{COMMAND}` from the files under `fixtures/results/`; `--check` tells whether it is up to date.
Each table is headed by the command that made it and by the hardware and versions it was measured on.
"""
_FAULTY = "--loop verify.faults."
_USUAL_TIMESTEPS = 50
_BLOCK = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", re.S)

Documents = Sequence[Mapping[str, Any]]


def load(folder: Path) -> list[tuple[str, Any]]:
    """The name of each file under ``folder`` with its document, or its text.

    Raises:
        BadInput: a file is neither ``.json`` nor ``.md``, or is not what its name says.
    """
    found: list[tuple[str, Any]] = []
    for path in sorted(folder.iterdir()):
        if path.suffix not in (".json", ".md"):
            raise BadInput.of("a file of results", str(path), "a .json or a .md file", "move it elsewhere")
        try:
            text = path.read_text(encoding="utf-8")
            found.append((path.name, json.loads(text) if path.suffix == ".json" else text))
        except (OSError, ValueError, RecursionError) as error:
            raise BadInput.of("a file of results", str(path), "readable text or JSON", str(error)) from None
    return found


def results(files: Sequence[tuple[str, Any]]) -> str:
    """The whole of RESULTS.md.

    Raises:
        BadInput: a document is of no known kind or misses something; the message names the file.
    """
    parts = [_PREFACE]
    for name, content in files:
        if isinstance(content, str):
            parts.append(content.strip() + "\n")
            continue
        try:
            if kind_of(content) == "run":
                validate(content)
            parts.append(markdown_section(section_of(content)))
        except BadInput as error:
            raise BadInput(f"{name}: {error}") from None
    if not files:
        parts.append("Nothing has been measured yet.\n")
    return "\n".join(parts)


def headlines(files: Sequence[tuple[str, Any]]) -> str:
    """One Markdown line for each kind of document that has one: what the README shows."""
    by_kind: dict[str, list[Mapping[str, Any]]] = {}
    for _, content in files:
        if not isinstance(content, str):
            by_kind.setdefault(kind_of(content), []).append(content)
    lines = [f"- {markdown_text(_HEADLINES[kind](by_kind[kind]))}" for kind in _HEADLINES if kind in by_kind]
    return "\n".join(lines or ["Nothing has been measured yet."]) + "\n"


def with_headlines(readme: str, lines: str) -> str:
    """The README with its results replaced.

    Raises:
        BadInput: it has no marked block, or several.
    """
    if len(_BLOCK.findall(readme)) != 1:
        raise BadInput("README.md has no one block from <!-- results --> to <!-- /results -->, expected one; add it")
    return _BLOCK.sub(lambda found: found[1] + lines + found[2], readme)


def _runs(documents: Documents) -> str:
    """Who passed where, and which check keeps the others from it; their reasons are in RESULTS.md."""
    # A run with a fault in its loop shows how it ends; it is not meant to pass.
    sound = [d for d in documents if _FAULTY not in d["command"]]
    passed = [d for d in sound if d["verdict"] == "pass"]
    said = [f"{len(passed)} of {len(sound)} runs pass" + (f": {_grouped(passed)}" if passed else "")]
    for verdict in ("fail", "unknown"):
        others = [f"{_whose(d)} ({_checks_that_say(d)})" for d in sound if d["verdict"] == verdict]
        said += [f"{verdict.capitalize()}: {'; '.join(dict.fromkeys(others))}"] if others else []
    return f"Bits: {'. '.join(said)}."


def _grouped(documents: Documents) -> str:
    """``7b 1024x1024 on 2 and 3 ranks sharing 1 NVIDIA H200; ...``: runs that differ in one thing only are one."""
    ranks: dict[tuple[str, str], dict[str, None]] = {}
    for d in documents:
        ranks.setdefault((_name(d), _where(d["environment"])), {})[str(len(d["environment"]))] = None
    names: dict[tuple[str, str], list[str]] = {}
    for (name, where), counts in ranks.items():
        names.setdefault((_and(counts), where), []).append(name)
    places: dict[tuple[str, str], list[str]] = {}
    for (counted, where), each in names.items():
        places.setdefault((_and(each), counted), []).append(where)
    return "; ".join(f"{each} on {counted} ranks{_and(where)}" for (each, counted), where in places.items())


def _and(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last.lstrip()}" if first else last


def _checks_that_say(d: Mapping[str, Any]) -> str:
    """Why a run did not pass, in a word or two."""
    if d["failure"] is not None:
        return "it did not finish"
    said = [check["name"] for check in d["checks"] if check["verdict"] == d["verdict"]]
    return ", ".join(dict.fromkeys(said)) or "nothing was judged"


def _whose(d: Mapping[str, Any]) -> str:
    """Its name, and the number of timesteps where that is not the usual one: on it a schedule may hang."""
    timesteps = d["request"]["num_timesteps"]
    return _name(d) + (f" at {timesteps} timesteps" if timesteps != _USUAL_TIMESTEPS else "")


def _name(d: Mapping[str, Any]) -> str:
    """The built-in target's runs go by their size; another's by its version."""
    r = d["request"]
    if d["target"] == "builtin":
        return f"{r.get('preset', '')} {r['height']}x{r['width']}"
    return whose(d["target"], d["environment"])


def _ranks(d: Mapping[str, Any]) -> str:
    """How many ranks on what."""
    return f"{len(d['environment'])} ranks{_where(d['environment'])}"


def _where(environment: Sequence[Mapping[str, Any]]) -> str:
    """On what; ranks that share a GPU are said to."""
    # "NVIDIA H100 80GB HBM3" is told whole in RESULTS.md.
    models = (re.sub(r"(NVIDIA \w+).*", r"\1", str(rank["gpu"])) for rank in environment if rank.get("gpu"))
    names = " and ".join(dict.fromkeys(models)) or "CPU"
    gpus = {rank.get("gpu_uuid", rank.get("gpu_index")) for rank in environment if rank.get("gpu")}
    shared = bool(gpus) and len(gpus) < len(environment)
    return f" sharing {len(gpus)} {names}" if shared else f" ({names})"


def _bench(documents: Documents) -> str:
    """The first sentence of each point, smallest first; what points have in common is told once.

    Points whose remark says that they are no evidence are told only where there are no others.
    """
    found: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for d in documents:
        for p in d["points"]:
            if p["sentences"]:
                first, remark = _without_remark(p["sentences"][0])
                key = f"{p['preset']} on {_ranks(d)}", remark
                found.setdefault(key, []).append((p["height"], f"at {p['height']}x{p['width']} {first}"))
    evidence = {key: points for key, points in found.items() if not key[1]} or found
    said = [
        f"{where}{remark}: {'; '.join(told for _, told in sorted(points))}"
        for (where, remark), points in evidence.items()
    ]
    return f"Time: {'. '.join(said) or 'nothing to compare was measured'}."


def _without_remark(sentence: str) -> tuple[str, str]:
    """A sentence and the remark in brackets at its end, if it says how far the numbers carry."""
    found = re.fullmatch(r"(.*?) \([^()]*: (no evidence about separate GPUs)\)", sentence)
    return (found[1], f" ({found[2]})") if found else (sentence, "")


def _overhead(documents: Documents) -> str:
    """One number a document: of several settings, the one in which verifying adds most."""
    said = []
    for d in documents:
        rows = [
            (measured["verified_over_bare"], f"{point['preset']} {point['height']} {loop}")
            for point in d["overhead"]
            for loop, measured in point["loops"].items()
        ]
        if rows:
            r, name = max(rows, key=lambda row: row[0]["ratio"])
            most = f", the most of {len(rows)} settings" if len(rows) > 1 else ""
            added, low, high = (100 * (r[key] - 1) for key in ("ratio", "low", "high"))
            amount = f"{added:.2f} %" if low > 0 else "nothing that can be measured"
            said.append(f"{amount} ({low:.2f} to {high:.2f} %) to {name} on {_ranks(d)}{most}")
    return f"Verifying adds {'; '.join(said) or 'nothing: it was not measured'}."


def _faults(documents: Documents) -> str:
    said = []
    for d in documents:
        faults = [row for row in d["faults"] if row["expected"] is not None]
        caught, placed = (sum(row[key] for row in faults) for key in ("caught", "placed"))
        said.append(f"{caught} of {len(faults)} caught and {placed} placed on {_ranks(d)}")
    return f"Injected faults: {'; '.join(said)}."


def _fuzz(documents: Documents) -> str:
    said = [f"{d['cases']:,} cases on {_ranks(d)}: {d['verdict']}" for d in documents]
    return f"The combine fuzzed: {'; '.join(said)}."


# The kinds that have a line in the README, in the order of the lines.
_HEADLINES: dict[str, Callable[[Documents], str]] = {
    "run": _runs,
    "faults": _faults,
    "fuzz": _fuzz,
    "bench": _bench,
    "overhead": _overhead,
}


def rendered(root: Path) -> dict[Path, str]:
    """What RESULTS.md and README.md of the checkout at ``root`` should hold.

    Raises:
        BadInput: there is no such folder of results, or something in it cannot be used.
    """
    folder = root / "fixtures" / "results"
    if not folder.is_dir():
        raise BadInput.of("the folder of results", str(folder), "a folder", "run this in a checkout")
    files = load(folder)
    readme = root / "README.md"
    return {
        root / "RESULTS.md": results(files),
        readme: with_headlines(readme.read_text(encoding="utf-8"), headlines(files)),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes both files, or compares them; 0 if they are up to date, 1 if not, 2 if something cannot be used."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="Writes RESULTS.md and the README's results.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if a file is stale")
    parser.add_argument("--root", type=Path, default=Path(), help="the checkout (default: this folder)")
    parsed = parser.parse_args(arguments)
    try:
        due = rendered(parsed.root)
        stale = [p for p, text in due.items() if not p.is_file() or p.read_text(encoding="utf-8") != text]
        if not parsed.check:
            for path in stale:
                write_whole(path, due[path])
    except BadInput as error:
        print(f"verify: {error}", file=sys.stderr)
        return 2
    for path in stale:
        print(f"{path} {'is stale: run ' + COMMAND if parsed.check else 'written'}")
    return 1 if stale and parsed.check else 0


if __name__ == "__main__":
    sys.exit(main())
