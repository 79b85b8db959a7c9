"""Documents of the former schema, brought into the shape of the present one.

Schema 1 named a kind only where a document was no run, benchmark or fault matrix; it did not say when and from what it
was made; and the envelope, the mutants and the machine had no command.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verify.report.documents.parts import SCHEMA

FORMER_SCHEMA = 1
# The key that tells a document without a kind from the others.
_BY_KEY = {"checks": "run", "points": "bench", "overhead": "overhead", "faults": "faults"}
_NO_COMMAND = {"mutants": "verify fuzz --mutants", "envelope": "verify fuzz --envelope"}
# Parts that not every version of schema 1 wrote.
_LATER: dict[str, dict[str, Any]] = {
    "run": {"notes": [], "failure": None, "collectives": {}, "timings": {}},
    "fuzz": {"profile": "", "combine": "", "backend": "", "replays": {}, "failure": None, "timings": {}},
    "mutants": {"profile": "", "seed": 0, "device": "cpu", "timings": {}},
    "bench": {"timings": {}},
    "overhead": {"timings": {}},
}


def migrated(former: Mapping[str, Any]) -> dict[str, Any]:
    """The same document in the present shape; what no reader can know stays empty."""
    kind = former.get("kind", next((kind for key, kind in _BY_KEY.items() if key in former), None))
    blank: dict[str, Any] = {"command": _NO_COMMAND.get(str(kind), ""), "made": None, "environment": [], "notes": []}
    return blank | _LATER.get(str(kind), {}) | dict(former) | {"schema": SCHEMA, "kind": kind}
