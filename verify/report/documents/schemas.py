"""``python -m verify.report.documents.schemas``: writes the JSON Schema of every kind beside the types."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from verify.report.documents.reading import KINDS

FOLDER = resources.files("verify.report.documents").joinpath("schema")


def schema(kind: str) -> dict[str, Any]:
    """The JSON Schema of a kind, made from its type. What its ``__post_init__`` checks is not in it."""
    made = msgspec.json.schema(KINDS[kind])
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}


def rendered(kind: str) -> str:
    """The file that ships."""
    return json.dumps(schema(kind), indent=1) + "\n"


def main() -> None:
    """Writes every file."""
    folder = Path(str(FOLDER))
    folder.mkdir(exist_ok=True)
    for kind in KINDS:
        (folder / f"{kind}.json").write_text(rendered(kind), encoding="utf-8")


if __name__ == "__main__":
    main()
