"""The document of ``verify matrix``: many runs, side by side."""

from __future__ import annotations

from typing import Literal

from verify.report.documents.parts import Count, Document, Part, Text

# vacuous: nothing ran in parallel, so that there was nothing to judge; refused: by the engine or the target.
Outcome = Literal["pass", "fail", "vacuous", "refused", "unknown"]
OUTCOMES: tuple[Outcome, ...] = ("pass", "fail", "vacuous", "refused", "unknown")


class MatrixCell(Part, frozen=True):
    """One run.

    Attributes:
        row: what was run, a model family say.
        column: in which combination.
        release: of the engine.
        outcome: what came of it.
        said: the first finding that is no pass, the engine's words, or why nothing was run; for a pass how many steps
            and elements were compared.
        checks: the checks that failed.
        command: what runs the cell again; empty where nothing could be run.
        seconds: it took; None if it was not run.
    """

    row: Text
    column: Text
    release: str
    outcome: Outcome
    said: str
    checks: tuple[str, ...] = ()
    command: str = ""
    seconds: float | None = None

    @property
    def name(self) -> tuple[str, str, str]:
        """By which it is found in another matrix."""
        return self.row, self.column, self.release


class Changed(Part, frozen=True):
    """A cell whose outcome is another than in an earlier matrix; empty where it was not in one of them."""

    row: Text
    column: Text
    release: str
    before: Outcome | Literal[""]
    now: Outcome | Literal[""]


class Matrix(Document, frozen=True, tag="matrix"):
    """What came of every cell of a plan, run or not.

    Attributes:
        title: of the plan.
        cells: in the plan's order.
        changed: against an earlier matrix; None where there was none to compare with.
        seconds: the whole took.
        not_reached: cells that were left when the time was over; they are among the cells, as unknown.
    """

    title: Text
    cells: tuple[MatrixCell, ...]
    changed: tuple[Changed, ...] | None
    seconds: float
    not_reached: Count = 0
