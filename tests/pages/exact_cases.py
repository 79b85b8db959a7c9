"""``python -m tests.pages.exact_cases`` writes ``fixtures/exact_cases.json``: the exact cases of the fuzzer."""

from __future__ import annotations

import json
from pathlib import Path

from verify.fuzz.case import BRANCHES
from verify.fuzz.exact import generate

PATH = Path("fixtures/exact_cases.json")


def rendered() -> str:
    """The whole file: one case per line, so that a change can be read."""
    lines = ",\n".join(json.dumps(case.to_dict()) for case in generate())
    return (
        f'{{"schema": 1, "kind": "exact combine cases", "branches": {json.dumps(BRANCHES)}, "cases": [\n{lines}\n]}}\n'
    )


if __name__ == "__main__":
    PATH.write_text(rendered(), encoding="utf-8")
