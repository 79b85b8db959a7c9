"""Documents from disk: JSON, then the former schema's shape made the present one's, then types."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from verify.errors import BadInput
from verify.report.documents.bench import Bench, Forwards, Overhead
from verify.report.documents.faults import Faults
from verify.report.documents.former import FORMER_SCHEMA, migrated
from verify.report.documents.fuzz import Envelope, Fuzz, Mutants
from verify.report.documents.machine import Doctor
from verify.report.documents.matrix import Matrix
from verify.report.documents.parts import SCHEMA, Document
from verify.report.documents.run import Run
from verify.report.documents.suite import Controls, Mutation

KINDS: dict[str, type[Document]] = {
    "run": Run,
    "fuzz": Fuzz,
    "mutants": Mutants,
    "envelope": Envelope,
    "faults": Faults,
    "bench": Bench,
    "overhead": Overhead,
    "forwards": Forwards,
    "doctor": Doctor,
    "matrix": Matrix,
    "upstream": Controls,
    "mutation": Mutation,
}
_FIX = "write it again with --json"
_PLACE = re.compile(r"(.*) - at `(\$.*)`", re.DOTALL)


def read(path: str | Path) -> Document:
    """A document from disk, of any kind and of this or the former schema.

    Raises:
        BadInput: no such file, no JSON, or not such a document.
    """
    return document_of(load_json(path))


def document_of(value: Any) -> Document:
    """A JSON value as the document that it is.

    Raises:
        BadInput: it is none; the message names where in it the fault lies.
    """
    if not isinstance(value, Mapping):
        raise BadInput.of("the document", type(value).__name__, "a JSON object", _FIX)
    schema = value.get("schema")
    if schema not in (SCHEMA, FORMER_SCHEMA) or isinstance(schema, bool):
        raise BadInput.of("the document's schema", schema, f"{FORMER_SCHEMA} or {SCHEMA}", _FIX)
    try:
        value = migrated(value) if schema == FORMER_SCHEMA else value
        kind = value.get("kind")
        if not isinstance(kind, str) or kind not in KINDS:
            raise BadInput.of("the kind of document", kind, f"one of {', '.join(KINDS)}", _FIX)
        return msgspec.convert(value, KINDS[kind])
    except msgspec.ValidationError as error:
        raise _misfit(error) from None
    except (LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
        # What migrating or converting raises for other parts than a document has.
        what = f"{type(error).__name__}: {error}"
        raise BadInput(f"the document cannot be read ({what}), expected every part of one; {_FIX}") from None


def _misfit(error: msgspec.ValidationError) -> BadInput:
    found = _PLACE.fullmatch(str(error))
    what, place = (found[1], found[2]) if found else (str(error), "$")
    return BadInput(f"the document at {place} does not fit ({what}), expected every part as its type says; {_FIX}")


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
