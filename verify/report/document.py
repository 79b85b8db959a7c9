"""The JSON document of a run: what it holds, how it is checked, how it reaches the disk."""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from verify.errors import BadInput
from verify.verdict import EXIT_STATUS, Finding, Verdict

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


def schema() -> dict[str, Any]:
    """The JSON Schema of a document."""
    loaded: dict[str, Any] = json.loads(resources.files("verify.report").joinpath("schema.json").read_text())
    return loaded


def validate(document: Any) -> None:
    """Checks a document against the schema.

    Raises:
        BadInput: it does not fit; the message names the place.
    """
    import jsonschema

    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema()).iter_errors(document))
    if error is not None:
        raise BadInput(f"the document at {error.json_path}: {error.message[:200]}; make it with this version's --json")


def read_document(path: str | Path) -> dict[str, Any]:
    """A document from disk, checked.

    Raises:
        BadInput: no such file, no JSON, or not such a document.
    """
    try:
        loaded = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput.of("the document", str(path), "a readable file", f"{type(error).__name__}: {error}") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise BadInput.of("the document", str(path), "JSON", f"it is not: {error}") from None
    validate(loaded)
    assert isinstance(loaded, dict)
    return loaded


def check_writable(path: str | Path) -> None:
    """Finds out before a long run whether its result can be written.

    Raises:
        BadInput: the folder does not exist or cannot be written to, or ``path`` is a folder.
    """
    target = Path(path)
    if target.is_dir():
        raise BadInput.of("the output file", str(path), "a file name", "it is a folder; name a file in it")
    if not target.parent.is_dir():
        raise BadInput.of("the output file", str(path), "a file in a folder that exists", "create the folder first")
    if not os.access(target if _is_stream(target) else _behind_links(target).parent, os.W_OK):
        raise BadInput.of("the output file", str(path), "a file in a writable folder", "choose another place")


def write_document(document: Mapping[str, Any], path: str | Path) -> None:
    """Writes a document, whole or not at all.

    Raises:
        BadInput: it cannot be written.
    """
    write_whole(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


def write_whole(path: str | Path, text: str) -> None:
    """Writes ``text`` beside ``path`` and moves it there once it is complete. Pipes and devices are written to.

    Raises:
        BadInput: it cannot be written.
    """
    check_writable(path)
    target = Path(path)
    try:
        if _is_stream(target):
            target.write_text(text, encoding="utf-8")
        else:
            _replace(_behind_links(target), text)
    except (OSError, ValueError) as error:
        raise BadInput.of("the output file", str(path), "a place that can be written", str(error)) from None


def _replace(target: Path, text: str) -> None:
    temporary = target.with_name(f".verify-{secrets.token_hex(8)}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _behind_links(path: Path) -> Path:
    """What a link points at is replaced, not the link."""
    return Path(os.path.realpath(path))


def _is_stream(path: Path) -> bool:
    """Whether ``path`` is a pipe or a device, which must not be replaced by a file: ``/dev/stdout``."""
    return path.exists() and not path.is_file()
