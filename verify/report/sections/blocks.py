"""What a document looks like to people: sections of typed blocks. Renderers know these and no documents."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from verify.verdict import Verdict

# How a verdict is marked and called, in every medium: a shape with a word, and a sentence.
MARKS = {
    Verdict.PASS: "✓ pass",
    Verdict.FAIL: "✗ FAIL",
    Verdict.UNKNOWN: "? unknown",
    Verdict.EXPLAINED: "≈ explained by rounding",
}
WORDS = {
    Verdict.PASS: "Pass",
    Verdict.FAIL: "Fail",
    Verdict.UNKNOWN: "Unknown: it could not be judged",
    Verdict.EXPLAINED: "Explained by rounding: not the same bits",
}
_NUMBER = re.compile(r"[-+]?[\d,]*\.?\d+( to [-+]?[\d.]+)?( ?%)?( \([-+]?[\d.]+ to [-+]?[\d.]+\))?|-|")


def slug(text: str) -> str:
    """Words as a fragment of a page's address."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


@dataclass(frozen=True)
class Cell:
    """A cell of a table that is more than plain text.

    Attributes:
        text: what it says; beside a verdict, where.
        verdict: drawn as a shape and a word before the text.
        note: an explanation, for media with room for it.
        marked: whether it needs the reader's attention.
    """

    text: str
    verdict: Verdict | None = None
    note: str = ""
    marked: bool = False


@dataclass(frozen=True)
class Table:
    """Headings and rows; columns of numbers alone are aligned right.

    Attributes:
        headings: one a column.
        rows: one cell a column.
        caption: what it shows.
        folded: whether it is shown only to a reader who asks for it, under its caption.
        minor: headings of the columns that a narrow screen leaves out.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    caption: str = ""
    folded: bool = False
    minor: Sequence[str] = ()

    def right(self, column: int) -> bool:
        """Whether the column holds numbers alone."""
        cells = [row[column] for row in self.rows]
        return bool(cells) and all(isinstance(cell, str) and _NUMBER.fullmatch(cell) for cell in cells)


@dataclass(frozen=True)
class Paragraph:
    """A sentence or more."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """Sentences that stand beside each other."""

    sentences: Sequence[str]


@dataclass(frozen=True)
class Fold:
    """Text that only a reader who asks for it sees, such as a stack."""

    title: str
    text: str


@dataclass(frozen=True)
class Message:
    """A whole failure as plain text.

    Attributes:
        title: what failed.
        verdict: fail or unknown.
        text: all of it, for a terminal.
        short: the same without what ``folds`` hold, for media that can fold; empty if there is nothing to fold.
        folds: long stacks and output.
    """

    title: str
    verdict: Verdict
    text: str
    short: str = ""
    folds: Sequence[Fold] = ()


@dataclass(frozen=True)
class Command:
    """A command line to copy."""

    text: str


@dataclass(frozen=True)
class Card:
    """What is at fault, at a glance. Where there is no page, the :class:`Message` of the same failure says it all.

    Attributes:
        title: what failed.
        facts: names and values: step, rank, tensor, operator, values, differences.
        means: what it usually means.
        command: what reproduces it.
        others: further failures, by name.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    means: str = ""
    command: str = ""
    others: Sequence[str] = ()


@dataclass(frozen=True)
class Strip:
    """One rank over all steps.

    Attributes:
        label: whose.
        said: the strip in words.
        states: for each step the share, 0 to 1, of those compared with it that hold other bytes; None if not compared.
    """

    label: str
    said: str
    states: tuple[float | None, ...]


@dataclass(frozen=True)
class Strips:
    """One comparison of one loop: a strip for each rank."""

    title: str
    verdict: Verdict
    strips: tuple[Strip, ...]


@dataclass(frozen=True)
class Chart:
    """Counts over steps; one line for each series. None where there is no number."""

    title: str
    series: Sequence[tuple[str, Sequence[int | None]]]


@dataclass(frozen=True)
class TokenMap:
    """Which tokens of the image differ.

    Attributes:
        title: what is drawn, in words.
        rows: of ninths of a token's channels that differ, 0 to 9.
    """

    title: str
    rows: tuple[tuple[int, ...], ...]

    @property
    def differing(self) -> list[tuple[int, int]]:
        """Row and column of every token that differs."""
        return [(r, c) for r, row in enumerate(self.rows) for c, ninths in enumerate(row) if ninths]


@dataclass(frozen=True)
class Image:
    """A picture.

    Attributes:
        title: what it shows.
        data: it, as a data URI that a document's type has checked.
    """

    title: str
    data: str


@dataclass(frozen=True)
class Bars:
    """Measured values with their spread.

    Attributes:
        title: what they are, and what the spread is.
        unit: of the values.
        rows: label, least, middle and greatest of each.
    """

    title: str
    unit: str
    rows: Sequence[tuple[str, float, float, float]]


Block = Table | Paragraph | Bullets | Message | Command | Card | Strips | Chart | TokenMap | Image | Bars | Fold


@dataclass(frozen=True)
class Section:
    """Blocks under a heading.

    Attributes:
        heading: what they are about; the page can be linked to by it.
        blocks: in reading order.
        page_only: whether only the page has room for it.
    """

    heading: str
    blocks: Sequence[Block]
    page_only: bool = False

    @property
    def anchor(self) -> str:
        """The heading as a fragment of the page's address."""
        return slug(self.heading)


@dataclass(frozen=True)
class Presentation:
    """A whole document for people, all of it plain text.

    Attributes:
        title: what tells it apart from others, for a tab.
        verdict: None for what judges nothing.
        heading: what the document is; empty for a run, of which the verdict is the heading.
        said: the result in a sentence.
        subject: what was run, one line each.
        notes: what a reader must know first.
        sections: in reading order.
        command: what made it.
        made: hardware, versions, date and commit, in one line.
        closing: the last line: exit status and time.
    """

    title: str
    verdict: Verdict | None
    heading: str
    said: str
    subject: Sequence[str]
    notes: Sequence[str]
    sections: Sequence[Section]
    command: str
    made: str
    closing: str = ""


def shown(value: Any) -> str:
    """A value as the text of a cell."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
