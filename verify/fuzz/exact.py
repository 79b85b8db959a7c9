"""Cases in which nothing is rounded, so that the answer is one bit pattern on every correct machine.

``exact_cases.json`` holds them. ``tests/pages/exact_cases.py`` finds them by rational arithmetic and writes the file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from verify.errors import BadInput
from verify.fuzz.case import Case


@dataclass(frozen=True)
class ExactCase:
    """A case and its one right answer.

    Attributes:
        case: every element listed.
        expected: the bits of the result, in rows.
    """

    case: Case
    expected: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        width = self.case.form.width // 4
        return self.case.to_dict() | {"expected": " ".join(f"{x:0{width}x}" for x in self.expected)}

    @classmethod
    def from_dict(cls, data: Any) -> ExactCase:
        """The case that :meth:`to_dict` wrote."""
        return cls(Case.from_dict(data), tuple(int(word, 16) for word in data["expected"].split()))


@cache
def exact_cases() -> Sequence[ExactCase]:
    """Every exact case."""
    stored = resources.files("verify.fuzz").joinpath("exact_cases.json").read_text(encoding="utf-8")
    return tuple(ExactCase.from_dict(data) for data in json.loads(stored)["cases"])


def answer_to(case: Case) -> ExactCase:
    """The exact case that a saved one is.

    Raises:
        BadInput: it is none of this version's.
    """
    for exact in exact_cases():
        if exact.case == case:
            return exact
    raise BadInput("the saved case is none of this version's exact cases; save it again with this version")
