"""Every kind of JSON document as a section of text and tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from verify.errors import BadInput
from verify.report.bench import bench_section, forwards_section, overhead_section
from verify.report.document import SCHEMA_VERSION
from verify.report.envelope import envelope_section
from verify.report.environment import whose
from verify.report.headed import headed, listed
from verify.report.mismatch import as_document
from verify.report.tables import Section, Table, shown

Document = Mapping[str, Any]

# The key that tells a document without a ``kind`` from the others.
_BY_KEY = {"checks": "run", "points": "bench", "overhead": "overhead", "faults": "faults"}


def kind_of(document: Any) -> str:
    """Which command's document it is.

    Raises:
        BadInput: none that this version knows.
    """
    if not isinstance(document, Mapping):
        raise BadInput.of("the document", type(document).__name__, "a JSON object", "write it with --json")
    if document.get("schema") != SCHEMA_VERSION:
        raise BadInput.of("the document's schema", document.get("schema"), str(SCHEMA_VERSION), "write it with --json")
    kind = document.get("kind", next((kind for key, kind in _BY_KEY.items() if key in document), None))
    if not isinstance(kind, str) or kind not in _SECTIONS:
        raise BadInput.of("the kind of document", kind, f"one of {', '.join(_SECTIONS)}", "write it with --json")
    return kind


def section_of(document: Any) -> Section:
    """The document for people.

    Raises:
        BadInput: its kind is not known, or something that the kind needs is missing.
    """
    kind = kind_of(document)
    with as_document(kind):
        return _SECTIONS[kind](document)


def _run(d: Document) -> Section:
    r, schedule = d["request"], d["schedule"]
    guided_by = " and ".join(name for name in ("text", "img") if r[f"cfg_{name}_scale"] > 1.0) or "nothing"
    over = f" over {d['backend']}" if d["backend"] else ""
    title = (
        f"{whose(d['target'], d['environment'])} {r.get('preset', '')} {r['height']}x{r['width']}, "
        f"guided by {guided_by}, {d['world_size']} ranks{over} on {d['device']}: {d['verdict']}"
    )
    spent = ", ".join(f"{name} {seconds:.2f}" for name, seconds in d["timings"].items())
    sentences = [
        f"{c['verdict']} {c['name']} ({c['loop']}): {c['summary']}" for c in d["checks"] if c["verdict"] != "pass"
    ]
    if d.get("failure"):
        sentences.append(f"{d['failure']['task']}: {d['failure']['cause']}")
    sentences.append(
        f"{schedule['steps']} steps, {schedule['guided_steps']} guided" + (f"; seconds: {spent}" if spent else "")
    )
    tables = [_checks(d["checks"])] if d["checks"] else []
    return headed(d, title, tables, sentences, d["notes"])


def _checks(checks: Sequence[Document], over: str = "steps") -> Table:
    loops = list(dict.fromkeys(c["loop"] for c in checks if c["loop"] != "*")) or ["*"]
    by_name: dict[str, dict[str, Document]] = {}
    for check in checks:
        by_name.setdefault(check["name"], {})[check["loop"]] = check
    rows = []
    for name, row in by_name.items():
        judged = [row.get(loop, row.get("*")) for loop in loops]
        steps = min(check["compared"]["steps"] for check in row.values())
        elements = sum(check["compared"]["elements"] for check in row.values())
        rows.append([name, *("" if c is None else _verdict(c) for c in judged), f"{steps:,}", f"{elements:,}"])
    return Table(["check", *loops, over, "elements"], rows)


def _verdict(check: Document) -> str:
    first = check["first_divergence"]
    step = None if first is None else first["step"]
    return str(check["verdict"]) + ("" if step is None else " before step 0" if step < 0 else f" at step {step}")


def _faults(d: Document) -> Section:
    rows, open_questions = [], []
    for row in listed(d, "faults"):
        due = row["expected"] or {"check": "", "step": None, "rank": None}
        outcome = "caught, placed" if row["caught"] and row["placed"] else "caught" if row["caught"] else "MISSED"
        if row["expected"] is None:
            outcome = "passed" if row["caught"] else "FALSE ALARM"
        named = [f"{shown(row[key])} / {shown(due[key])}" if row["expected"] else "" for key in ("step", "rank")]
        fired = ", ".join(row["fired"][:1])
        rows.append([row["fault"], row["verdict"], fired, *named, f"{row['seconds']:.1f}", outcome, row["source"]])
        if not row["caught"] or (row["expected"] is not None and not row["placed"]):
            open_questions.append(rows[-1])
    headings = [
        "fault",
        "verdict",
        "check that fired",
        "step named / injected",
        "rank named / injected",
        "s",
        "",
        "seen at",
    ]
    faults = [row for row in d["faults"] if row["expected"] is not None]
    caught, placed = (sum(row[key] for row in faults) for key in ("caught", "placed"))
    said = f"{caught} of {len(faults)} faults caught, {placed} placed, in {d['seconds']:.0f} s"
    title = f"Faults injected on {d['world_size']} ranks on {d['device']}: {d['verdict']}"
    tables = [Table(headings, open_questions, "not as it should be")] if open_questions else []
    return headed(d, title, [*tables, Table(headings, rows, f"all {len(rows)} runs", folded=True)], [said])


def _fuzz(d: Document) -> Section:
    # "steps" of a property counts cases.
    tables = [_checks(d["properties"], "cases")] if d["properties"] else []
    sentences = [f"{p['verdict']} {p['name']}: {p['summary']}" for p in d["properties"] if p["verdict"] != "pass"]
    sentences.append(f"{d['cases']:,} cases, {d['cases_per_minute']:,.0f} a minute, seed {d['seed']}")
    title = f"The combine fuzzed on {d['world_size']} ranks on {d['device']}: {d['verdict']}"
    return headed(d, title, tables, sentences, d["notes"])


def _generic(title: str, command: str) -> Callable[[Document], Section]:
    """Every list of objects as a table; every other plain value as a sentence."""

    def section(d: Document) -> Section:
        tables, sentences = [], []
        for name, value in d.items():
            if name in ("schema", "kind", "command", "environment", "notes", "timings", "verdict"):
                continue
            if isinstance(value, list) and value and all(isinstance(row, Mapping) for row in value):
                headings = list(dict.fromkeys(key for row in value for key in row))
                rows = [[shown(row.get(key)) for key in headings] for row in value]
                tables.append(Table([heading.replace("_", " ") for heading in headings], rows))
            else:
                sentences.append(f"{name.replace('_', ' ')}: {shown(value)}")
        if not tables:
            raise ValueError("no table in it")
        verdict = f": {d['verdict']}" if "verdict" in d else ""
        return headed({"command": command} | dict(d), title + verdict, tables, sentences, d.get("notes", ()))

    return section


_SECTIONS: dict[str, Callable[[Document], Section]] = {
    "run": _run,
    "bench": bench_section,
    "overhead": overhead_section,
    "faults": _faults,
    "fuzz": _fuzz,
    "mutants": _generic("Combines with one thing wrong", "verify fuzz --mutants"),
    "envelope": envelope_section,
    "forwards": forwards_section,
    "upstream": _generic("vllm-omni's own loop with one thing wrong", "tests/upstream/verdicts.py"),
    "mutation": _generic("The verifier's own code with one thing wrong", "tox run -e mutation"),
}
