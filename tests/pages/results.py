"""``python -m tests.pages.results`` writes the tables of RESULTS.md and README.md from the files in fixtures/results.

Each file in that folder is a document that a command wrote with ``--json``. The tables stand between
``<!-- table: NAME -->`` and ``<!-- /table -->``; all else in the two files is written by hand. A document as a whole is
shown by ``verify report FILE``.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

COMMAND = "python -m tests.pages.results"
FOLDER = Path("fixtures/results")
PAGES = ("RESULTS.md", "README.md")
_TABLE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- /table -->)", re.S)
# The key that tells a document without a kind from the others.
_BY_KEY = {"checks": "run", "points": "bench", "overhead": "overhead", "faults": "faults"}

Document = Mapping[str, Any]
Documents = Mapping[str, Document]


def load(folder: Path) -> dict[str, Document]:
    """Each document in ``folder`` by the name of its file."""
    return {path.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.iterdir())}


def of_kind(documents: Documents, *kinds: str) -> Iterator[tuple[str, Document]]:
    """The documents that are of one of ``kinds``."""
    for name, d in documents.items():
        if d.get("kind", next((kind for key, kind in _BY_KEY.items() if key in d), None)) in kinds:
            yield name, d


def runs(documents: Documents) -> Iterator[tuple[str, Document]]:
    """Runs of loops that are right. A run of a fault shows how it ends, and is not meant to pass."""
    return ((name, d) for name, d in of_kind(documents, "run") if "--loop verify.faults." not in d["command"])


def with_tables(page: str, documents: Documents) -> str:
    """The page with every table made anew."""
    return _TABLE.sub(lambda found: found[1] + TABLES[found[2]](documents) + found[3], page)


def markdown(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def link(name: str, text: str = "") -> str:
    """A link to a document."""
    return f"[{text or name.removesuffix('.json')}]({FOLDER}/{name})"


def whose(d: Document) -> str:
    """The target of a run, its size, and its timesteps where they are not the default."""
    version = d["environment"][0].get(d["target"], "")
    request = d["request"]
    timesteps = f" N={request['num_timesteps']}" if request["num_timesteps"] != 50 else ""
    return f"{d['target']} {version} {request.get('preset', '')} {request['height']}²{timesteps}".replace("  ", " ")


def where(d: Document) -> str:
    """How many ranks ran on what; ranks that share GPUs are said to."""
    environment = d["environment"]
    models = (re.sub(r"NVIDIA (\w+).*", r"\1", str(rank["gpu"])) for rank in environment if rank.get("gpu"))
    gpus = {rank.get("gpu_uuid", rank.get("gpu_index")) for rank in environment if rank.get("gpu")}
    hardware = f"{len(gpus)} {'/'.join(dict.fromkeys(models))}" if gpus else "CPU"
    how = " sharing" if 0 < len(gpus) < len(environment) else ","
    over = f", {environment[0]['backend']}" if environment[0].get("backend") else ""
    return f"{len(environment)} ranks{how} {hardware}{over}"


def why(d: Document) -> str:
    """The verdict of a run, and the checks that say so."""
    said = [check["name"] for check in d["checks"] if check["verdict"] == d["verdict"]]
    reason = "it did not finish" if d["failure"] is not None else ", ".join(dict.fromkeys(said))
    return str(d["verdict"]) if d["verdict"] == "pass" else f"**{d['verdict']}** ({reason})"


def percent(ratio: Mapping[str, float]) -> str:
    """By how much a ratio exceeds one, with its interval."""
    amount, low, high = (100 * (ratio[key] - 1) for key in ("ratio", "low", "high"))
    return f"{amount:.2f} % ({low:.2f} to {high:.2f} %)"


def table_of_runs(documents: Documents) -> str:
    """One row per request and verdict of a target: on what it was run."""
    found: dict[tuple[str, str, str, str], list[str]] = {}
    for name, d in runs(documents):
        guided_by = "text, image" if d["request"]["cfg_img_scale"] > 1.0 else "text"
        steps = f"{d['schedule']['steps']}, {d['schedule']['guided_steps']}"
        found.setdefault((whose(d), guided_by, steps, why(d)), []).append(link(name, where(d)))
    rows = [(*key, "; ".join(links)) for key, links in sorted(found.items())]
    return markdown(("target", "guided by", "steps, guided", "verdict", "run on"), rows)


def table_of_controls(documents: Documents) -> str:
    """One row per fault that was put into vllm-omni's own loop, one column per release: the checks that fail."""
    found: dict[str, dict[str, dict[str, None]]] = {}
    for name, d in of_kind(documents, "upstream"):
        for c in d["controls"]:
            checks = ", ".join(c["checks that failed"]) or "none"
            found.setdefault(c["what is wrong"], {}).setdefault(link(name, c["release"]), {})[checks] = None
    releases = list(dict.fromkeys(release for told in found.values() for release in told))
    # Two ranks and three mostly fail alike, and are then told once.
    rows = [(what, *("; or ".join(told.get(release, ())) for release in releases)) for what, told in found.items()]
    return markdown(("what is wrong", *releases), rows)


def table_of_faults(documents: Documents) -> str:
    """One row per run of the catalogue."""
    rows = []
    for name, d in of_kind(documents, "faults"):
        faults = [row for row in d["faults"] if row["expected"] is not None]
        caught, placed = (sum(row[key] for row in faults) for key in ("caught", "placed"))
        rows.append((where(d), len(faults), caught, placed, f"{d['seconds']:.0f}", link(name)))
    return markdown(("run on", "faults", "caught", "placed", "seconds", "document"), rows)


def table_of_fuzz(documents: Documents) -> str:
    """One row per fuzzing run."""
    rows = [
        (where(d), f"{d['cases']:,}", len(d["properties"]), d["verdict"], link(name))
        for name, d in of_kind(documents, "fuzz")
    ]
    return markdown(("run on", "cases", "properties", "verdict", "document"), rows)


def table_of_times(documents: Documents) -> str:
    """One row per size and way of evaluating: both loops, and what is said of their difference."""
    rows = []
    for name, d in of_kind(documents, "bench"):
        for p in d["points"]:
            for suffix, way in (("", "eager"), ("+graph", "CUDA graphs")):
                if f"local{suffix}" not in p["loops"]:
                    continue
                ratio = p["ratios"][f"broadcast{suffix}/local{suffix}"]
                took = [p["loops"][f"{loop}{suffix}"] for loop in ("broadcast", "local")]
                seconds = (f"{loop['seconds']['p50']:.3f}" for loop in took)
                difference = f"{100 * (ratio['low'] - 1):.2f} to {100 * (ratio['high'] - 1):.2f} %"
                rows.append((f"{p['preset']} {p['height']}²", where(d), way, p["steps"], *seconds, difference,
                             f"{took[1]['over_limit']:.2f}", link(name)))  # fmt: skip
    headings = ("size", "run on", "passes", "steps", "broadcast, s", "local, s", "local gains", "local over its limit",
                "document")  # fmt: skip
    return markdown(headings, rows)


def table_of_forwards(documents: Documents) -> str:
    """One row per network that was timed in turn with the built-in one."""
    rows = []
    for name, d in of_kind(documents, "forwards"):
        theirs, ours = d["forwards"]
        version = d["environment"][0].get(theirs["network"], "")
        rows.append((f"{theirs['network']} {version}", f"{theirs['preset']} {theirs['pixels']}²", where(d),
                     f"{theirs['p50_ms']:.1f}", f"{ours['p50_ms']:.1f}", f"{theirs['over_builtin']['ratio']:.2f}",
                     link(name)))  # fmt: skip
    return markdown(("network", "size", "run on", "its pass, ms", "ours, ms", "ratio", "document"), rows)


def table_of_costs(documents: Documents) -> str:
    """One row per loop that was timed bare and verified in turn."""
    rows = []
    for name, d in of_kind(documents, "overhead"):
        for p in d["overhead"]:
            for loop, m in p["loops"].items():
                rows.append((f"{p['preset']} {p['height']}² {loop}", where(d), f"{m['bare_s']['p50']:.2f}",
                             percent(m["verified_over_bare"]), m["verified_over_bare"]["pairs"],
                             link(name)))  # fmt: skip
    return markdown(("loop", "run on", "bare, s", "verifying adds", "pairs", "document"), rows)


def table_of_envelope(documents: Documents) -> str:
    """One row per setting that changes bits: in the combine and in a forward pass, the dtypes in which it does."""
    found: dict[str, dict[str, list[str]]] = {}
    for _, d in of_kind(documents, "envelope"):
        for row in d["rows"]:
            if row["verdict"] != "bitwise" and row["applies"]:
                told = found.setdefault(row["condition"], {}).setdefault(row["subject"], [])
                told.append(f"{row['dtype']} {row['verdict']}" + f" ({row['note']})" * (row["verdict"] == "unknown"))
    subjects = ("combine", "forward")
    rows = [(name, *(", ".join(told.get(subject, [])) for subject in subjects)) for name, told in sorted(found.items())]
    return markdown(("setting", *subjects), rows)


def table_of_mutants(documents: Documents) -> str:
    """One row per mutation run."""
    rows = [
        (d["mutants"], d["killed"] + d["timed_out"], d["explained"], d["score"], f"{d['minutes']:.0f}", link(name))
        for name, d in of_kind(documents, "mutation")
    ]
    return markdown(("changes", "noticed", "explained", "score", "minutes", "document"), rows)


def summary(documents: Documents) -> str:
    """The README's table: one row per question."""
    sound = [d for _, d in runs(documents)]
    others = [f"{whose(d)}: {why(d)}" for d in sound if d["verdict"] != "pass"]
    passed = f"{len(sound) - len(others)} of {len(sound)} runs pass"
    rows = [("Do all ranks hold the same bytes?", ". ".join([passed, *dict.fromkeys(others)]))]
    said = []
    for _, d in of_kind(documents, "faults"):
        faults = [row for row in d["faults"] if row["expected"] is not None]
        said.append(f"{sum(row['placed'] for row in faults)} of {len(faults)} on {where(d)}")
    rows.append(("Are injected faults caught, at their step and rank?", "; ".join(said)))
    said = [f"{d['cases']:,} cases on {where(d)}: {d['verdict']}" for _, d in of_kind(documents, "fuzz")]
    rows.append(("Does the combine give equal bits on equal inputs?", "; ".join(said)))
    said = [
        f"{p['height']}², {where(d)}: {p['sentences'][0]}"
        for _, d in of_kind(documents, "bench")
        for p in d["points"]
        if p["height"] == 1024 and "sharing" not in where(d)
    ]
    rows.append(("Is `local` faster than `broadcast` (7b)?", "; ".join(said)))
    said = [
        f"{percent(m['verified_over_bare'])} of a {p['preset']} loop on {where(d)}"
        for _, d in of_kind(documents, "overhead")
        for p in d["overhead"]
        for m in p["loops"].values()
    ]
    rows.append(("What does verifying cost?", "; ".join(said)))
    return markdown(("question", "measured"), rows)


def table_of_matrices(documents: Documents) -> str:
    """Rows of a matrix with the same outcomes together; without the columns in which nothing could be run."""
    cells = [c for _, d in of_kind(documents, "matrix") if "planted" not in d["title"] for c in d["cells"]]
    ran = dict.fromkeys(c["column"] for c in cells if c["outcome"] != "unknown")
    outcomes: dict[tuple[str, str], dict[str, str]] = {}
    for c in cells:
        outcomes.setdefault((c["row"], c["release"]), {})[c["column"]] = c["outcome"]
    alike: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for (row, release), found in outcomes.items():
        key = tuple(found.get(column, "-") for column in ran)
        alike.setdefault(key, {}).setdefault(row, []).append(release)
    rows = []
    for key, alike_rows in alike.items():
        by_releases: dict[str, list[str]] = {}
        for row, releases in alike_rows.items():
            by_releases.setdefault(", ".join(releases), []).append(row)
        said = "; ".join(f"{', '.join(names)} ({releases})" for releases, names in by_releases.items())
        rows.append((said, *("**fail**" if outcome == "fail" else outcome for outcome in key)))
    return markdown(("what (releases)", *ran), rows)


TABLES: dict[str, Callable[[Documents], str]] = {
    "runs": table_of_runs,
    "controls": table_of_controls,
    "matrices": table_of_matrices,
    "faults": table_of_faults,
    "fuzz": table_of_fuzz,
    "times": table_of_times,
    "forwards": table_of_forwards,
    "costs": table_of_costs,
    "envelope": table_of_envelope,
    "mutants": table_of_mutants,
    "summary": summary,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes both pages, or compares them. Exit status 0 if they are up to date, else 1."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="Writes the tables of RESULTS.md and README.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if a page is stale")
    parser.add_argument("--root", type=Path, default=Path(), help="the checkout (default: this folder)")
    parsed = parser.parse_args(arguments)
    documents = load(parsed.root / FOLDER)
    stale = False
    for name in PAGES:
        page = (parsed.root / name).read_text(encoding="utf-8")
        made = with_tables(page, documents)
        if made != page and parsed.check:
            print(f"{name} is stale: run {COMMAND}")
            stale = True
        elif made != page:
            (parsed.root / name).write_text(made, encoding="utf-8")
    return int(stale)


if __name__ == "__main__":
    sys.exit(main())
