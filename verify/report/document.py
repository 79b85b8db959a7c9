"""The JSON document of a run: what it holds, how it is checked, how it reaches the disk."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn

from verify.errors import BadInput
from verify.report.disk import replace_file, require_writable
from verify.report.mismatch import mismatch
from verify.verdict import EXIT_STATUS, Compared, Difference, Divergence, Finding, Verdict

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class RunReport:
    """What a run found, ready to be shown. All fields hold JSON values but ``verdict`` and ``findings``.

    Attributes:
        verdict: the merge of the findings; unknown where there are none.
        target: whose loops were judged.
        request: what was denoised and with which network.
        steps: Euler steps of the schedule.
        guided_steps: how many of them are guided.
        world_size: ranks.
        backend: gloo or nccl; empty if ranks never started.
        device: cpu or cuda.
        environment: what each rank ran on, in rank order.
        findings: what each check says of each loop.
        collectives: for each loop, how often rank 0 called each collective.
        timings: seconds, by loop and phase.
        notes: what a reader must know beside the verdict.
        failure: for a run that did not finish: the task, its cause, and a report for each rank.
        command: what reproduces the run.
        replicas: for a run of several processes that a launcher started: each replica's global ranks and their hosts,
            in rank order. ``world_size`` is then the size of one replica, and ``environment`` has one entry a process.
    """

    verdict: Verdict
    target: str
    request: Mapping[str, Any]
    steps: int
    guided_steps: int
    world_size: int
    backend: str
    device: str
    environment: Sequence[Mapping[str, Any]] = ()
    findings: Sequence[Finding] = ()
    collectives: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    timings: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()
    failure: Mapping[str, Any] | None = None
    command: str = ""
    replicas: Sequence[Mapping[str, Any]] = ()

    @property
    def exit_status(self) -> int:
        """0 pass, 1 fail, 3 unknown."""
        return EXIT_STATUS[self.verdict]


def build_document(report: RunReport) -> dict[str, Any]:
    """The report as plain JSON values, in the order of the contract; NaN and infinities become strings."""
    document: dict[str, Any] = _finite(
        {
            "schema": SCHEMA_VERSION,
            "verdict": str(report.verdict),
            "target": report.target,
            "request": dict(report.request),
            "schedule": {"steps": report.steps, "guided_steps": report.guided_steps},
            "world_size": report.world_size,
            "backend": report.backend,
            "device": report.device,
            "environment": [dict(rank) for rank in report.environment],
            "checks": [finding.to_dict() for finding in report.findings],
            "collectives": {loop: dict(counts) for loop, counts in report.collectives.items()},
            "timings": {name: round(seconds, 6) for name, seconds in report.timings.items()},
            "notes": list(report.notes),
            "failure": None if report.failure is None else dict(report.failure),
            "command": report.command,
        }
        | ({"replicas": [dict(replica) for replica in report.replicas]} if report.replicas else {})
    )
    return document


def _finite(value: Any) -> Any:
    """``value`` with every float that JSON does not have as a string: ``nan``, ``inf``, ``-inf``."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def report_of(document: Mapping[str, Any]) -> RunReport:
    """The report that a checked document was built from.

    Raises:
        BadInput: it fits the schema and contradicts itself.
    """
    d = document
    try:
        findings = [_finding_of(check) for check in d["checks"]]
    except ValueError as error:
        raise BadInput.of(
            "the document", str(error), "checks that do not contradict themselves", "make it again"
        ) from None
    return RunReport(
        verdict=Verdict(d["verdict"]),
        target=d["target"],
        request=d["request"],
        steps=d["schedule"]["steps"],
        guided_steps=d["schedule"]["guided_steps"],
        world_size=d["world_size"],
        backend=d["backend"],
        device=d["device"],
        environment=d["environment"],
        findings=findings,
        collectives=d["collectives"],
        timings=d["timings"],
        notes=d["notes"],
        failure=d["failure"],
        command=d["command"],
        replicas=d.get("replicas", ()),
    )


def _finding_of(check: Mapping[str, Any]) -> Finding:
    first = check["first_divergence"]
    compared = Compared(check["compared"]["steps"], check["compared"]["elements"])
    return Finding(
        check["name"],
        check["loop"],
        Verdict(check["verdict"]),
        check["summary"],
        compared,
        None if first is None else _divergence_of(first),
        tuple(check["details"]),
        check["data"],
    )


def _divergence_of(d: Mapping[str, Any]) -> Divergence:
    difference = None
    if None not in (d["index"], d["bits"], d["values"], d["mismatched"], d["of"]):
        # NaN and infinities travel as strings.
        values = [float(value) if isinstance(value, str) else value for value in d["values"]]
        difference = Difference(
            index=tuple(d["index"]),
            bits=(d["bits"][0], d["bits"][1]),
            values=(values[0], values[1]),
            ulp=d["ulp"],
            mismatched=d["mismatched"],
            of=d["of"],
            max_ulp=d["max_ulp"],
        )
    sides = None if d["sides"] is None else (d["sides"][0], d["sides"][1])
    replicas = (d["replicas"][0], d["replicas"][1]) if "replicas" in d else None
    return Divergence(d["step"], (d["ranks"][0], d["ranks"][1]), d["tensor"], sides, difference, replicas)


def schema() -> dict[str, Any]:
    """The JSON Schema of a document."""
    loaded: dict[str, Any] = json.loads(resources.files("verify.report").joinpath("schema.json").read_text())
    return loaded


def validate(document: Any) -> None:
    """Checks a document against the schema, where ``jsonschema`` is installed.

    Raises:
        BadInput: it does not fit; the message names the place.
    """
    if importlib.util.find_spec("jsonschema") is None:
        return
    import jsonschema

    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema()).iter_errors(document))
    if error is not None:
        raise mismatch(error)


def load_json(path: str | Path) -> Any:
    """A JSON value from disk.

    Raises:
        BadInput: no such file, or no JSON.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        return json.loads(text, parse_constant=_refuse_number, parse_float=_finite_number)
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput.of("the document", str(path), "a readable file", f"{type(error).__name__}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise BadInput.of("the document", str(path), "JSON", f"it is not: {error}") from None


def _finite_number(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse_number(text)


def _refuse_number(text: str) -> NoReturn:
    """Python takes these for numbers, JSON does not, and a document has them as strings."""
    raise ValueError(f"{text} is no number in JSON")


def read_document(path: str | Path) -> dict[str, Any]:
    """A run's document from disk, checked.

    Raises:
        BadInput: no such file, no JSON, or not such a document.
    """
    loaded = load_json(path)
    validate(loaded)
    assert isinstance(loaded, dict)
    return loaded


def check_writable(path: str | Path) -> None:
    """Finds out before a long run whether its result can be written.

    Raises:
        BadInput: the folder does not exist or cannot be written to, or ``path`` is a folder.
    """
    target = Path(path)
    try:
        if target.is_dir():
            raise BadInput.of("the output file", str(path), "a file name", "it is a folder; name a file in it")
        if not target.parent.is_dir():
            raise BadInput.of("the output file", str(path), "a file in a folder that exists", "create the folder first")
        require_writable(target)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise BadInput.of(
            "the output file", str(path), "a file in a writable folder", f"choose another place ({why})"
        ) from None


def write_document(document: Mapping[str, Any], path: str | Path) -> None:
    """Writes a document, whole or not at all.

    Raises:
        BadInput: it cannot be written.
    """
    write_whole(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


def write_whole(path: str | Path, text: str | bytes) -> None:
    """Writes ``text``, UTF-8, beside ``path`` and moves it there once it is complete. Pipes and devices are written to.

    Raises:
        BadInput: it cannot be written.
    """
    check_writable(path)
    target = Path(path)
    try:
        replace_file(target, text.encode() if isinstance(text, str) else text)
    except (OSError, ValueError) as error:
        raise BadInput.of("the output file", str(path), "a place that can be written", str(error)) from None
