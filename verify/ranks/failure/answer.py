"""What comes back from a rank: the one set of kinds for local workers and launched processes."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import verify
from verify.errors import BadInput, Unjudged


class AnswerKind(StrEnum):
    """How a task ended on a rank. The last two are how the controller notes that nothing whole came."""

    READY = "ready"
    DONE = "done"
    BAD_INPUT = "bad input"
    UNJUDGED = "unjudged"
    RAISED = "raised"
    DIED = "died"
    STUCK = "stuck"


@dataclass(frozen=True)
class Answer:
    """What came from a rank.

    Attributes:
        kind: how its task ended.
        value: the result; or, in words, why there is none.
        trace: the traceback of what it raised.
        spent: why the process can run no further task; empty if it can.
    """

    kind: AnswerKind
    value: Any = None
    trace: str = ""
    spent: str = ""

    @property
    def is_good(self) -> bool:
        """Whether the rank did what it was asked for."""
        return self.kind in (AnswerKind.READY, AnswerKind.DONE)

    @classmethod
    def of_error(cls, error: BaseException, note: str = "") -> Answer:
        """The answer of a rank whose task raised: its last line in words, and ``note``; the rest in the trace."""
        if isinstance(error, BadInput):
            return cls(AnswerKind.BAD_INPUT, str(error))
        if isinstance(error, Unjudged):
            return cls(AnswerKind.UNJUDGED, str(error))
        lines = "".join(traceback.format_exception_only(type(error), error)).strip().splitlines()
        what = lines[0] if not isinstance(error, SyntaxError) else lines[-1]
        return cls(AnswerKind.RAISED, what + note, _own_traceback(error))


def refusal(answers: Mapping[int, Answer]) -> tuple[int, BadInput | Unjudged] | None:
    """The first rank that refused its task, and its reason; bad input before what this machine cannot do."""
    for kind, error in ((AnswerKind.BAD_INPUT, BadInput), (AnswerKind.UNJUDGED, Unjudged)):
        for rank, answer in sorted(answers.items()):
            if answer.kind == kind:
                return rank, error(answer.value)
    return None


def _own_traceback(error: BaseException) -> str:
    """The traceback from the first frame outside this package on: how we came to call it is no news to its author."""
    package = str(Path(verify.__file__).parent)
    frame = error.__traceback__
    while frame is not None and frame.tb_frame.f_code.co_filename.startswith(package):
        frame = frame.tb_next
    return "".join(traceback.format_exception(type(error), error, frame or error.__traceback__))
