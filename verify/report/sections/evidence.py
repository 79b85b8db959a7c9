"""What the pictures of a run show, taken from its checks: agreement by step and rank, growth, a map of tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from verify.report.documents.parts import Check
from verify.report.documents.run import Run
from verify.report.sections.blocks import Block, Chart, Strip, Strips, Table, TokenMap

LEGEND = (
    "Each rank has one bar per step. A low bar: every byte agrees. A tall bar: bytes differ, and its height is the "
    "share of the compared traces that differ. A dot: the step was not compared."
)
_COMPARED_WITH = {
    "ranks_agree": "each rank with the other ranks",
    "matches_reference": "each rank with the reference",
    "loops_agree": "the loops with each other, rank by rank",
}
_MOST_SERIES = 6
_MOST_ROWS = 200


class Pair(msgspec.Struct, frozen=True):
    """Two traces that were compared, step by step."""

    sides: tuple[str, str]
    ranks: tuple[int, int]
    mismatched_by_step: tuple[int, ...]
    max_ulp_by_step: tuple[int | None, ...]


class Tokens(msgspec.Struct, frozen=True):
    """For each token of the first divergence a dot, or how many ninths of its channels differ."""

    sides: tuple[str, str]
    tokens: str


class Location(msgspec.Struct, frozen=True):
    """Where in its step a divergence begins."""

    step: int
    rank: int
    tensor: str
    operator: str = ""
    module: str = ""
    layer: int | None = None


def location(check: Check) -> Location | None:
    """Where in the step it begins; None where the step was not run again, or nothing was found."""
    try:
        return msgspec.convert(check.data.get("location"), Location)
    except msgspec.ValidationError:
        return None


def _pairs(check: Check) -> list[Pair]:
    """The pairs that hold all a picture needs: documents of earlier versions hold less."""
    try:
        return msgspec.convert(check.data.get("pairs", []), list[Pair])
    except msgspec.ValidationError:
        return []


def strips(document: Run) -> list[Strips]:
    """Every comparison of ``x_t`` that was made, in the order of the checks."""
    found = []
    for check in document.checks:
        if check.name in _COMPARED_WITH:
            loop = "" if check.loop == "*" else f"{check.loop}: "
            found.append(Strips(loop + _COMPARED_WITH[check.name], check.verdict, tuple(_strips(check, document))))
    return found


def _strips(check: Check, document: Run) -> list[Strip]:
    pairs, steps = _pairs(check), document.schedule.steps
    if not pairs:
        agreed = check.compared.steps if check.verdict.holds else 0
        states = (0.0,) * agreed + (None,) * max(0, steps - agreed)
        return [_strip(rank, states) for rank in range(document.world_size)]
    made = []
    for rank in sorted({rank for pair in pairs for rank in _judged(check, pair)}):
        mine = [pair.mismatched_by_step for pair in pairs if rank in _judged(check, pair)]
        made.append(_strip(rank, tuple(_share(mine, step) for step in range(max(steps, *map(len, mine))))))
    return made


def _strip(rank: int, states: tuple[float | None, ...]) -> Strip:
    return Strip(f"rank {rank}", _said(states), states)


def _said(states: Sequence[float | None]) -> str:
    compared = [state for state in states if state is not None]
    differing = [step for step, state in enumerate(states) if state]
    if not compared:
        return "not compared"
    if not differing:
        return f"agrees in {len(compared)} of {len(states)} steps"
    first, count = differing[0], len(differing)
    if differing == list(range(first, len(states))) and count > 1:
        return f"differs from step {first} on"
    return f"differs in step {first} alone" if count == 1 else f"differs in {count} steps, first in step {first}"


def _judged(check: Check, pair: Pair) -> Sequence[int]:
    """The ranks that a pair says something about; the reference is held to be right."""
    return pair.ranks[1:] if check.name == "matches_reference" else pair.ranks


def _share(mismatched: Sequence[Sequence[int]], step: int) -> float | None:
    there = [bool(counts[step]) for counts in mismatched if step < len(counts)]
    return sum(there) / len(there) if there else None


def figures(check: Check, document: Run) -> list[Block]:
    """How the pairs that differ grow apart, as charts and as numbers, and where in the image the first step differs."""
    pairs = [pair for pair in _pairs(check) if any(pair.mismatched_by_step)][:_MOST_SERIES]
    named = [(_names(check, pair), pair) for pair in pairs]
    made: list[Block] = []
    if named:
        made.append(Chart("elements that differ", [(name, pair.mismatched_by_step) for name, pair in named]))
    if any(value is not None for pair in pairs for value in pair.max_ulp_by_step):
        made.append(Chart("greatest distance, ULP", [(name, pair.max_ulp_by_step) for name, pair in named]))
    tokens = token_map(check, document)
    made += [tokens] if tokens is not None and tokens.differing else []
    return [*made, _numbers(named)] if named else made


def _names(check: Check, pair: Pair) -> str:
    """Whom a pair compares, no longer than is plain from the check it belongs to."""
    a, b = pair.ranks
    if check.name == "ranks_agree":
        return f"ranks {a} and {b}"
    return f"the reference and rank {b}" if check.name == "matches_reference" else " and ".join(pair.sides)


def _numbers(named: Sequence[tuple[str, Pair]]) -> Table:
    last = max(len(pair.mismatched_by_step) for _, pair in named)
    headings = ["step", *(f"{what}, {name}" for name, _ in named for what in ("elements", "ULP"))]
    rows = []
    for step in range(last):
        counts = [_at(pair.mismatched_by_step, step) for _, pair in named]
        ulps = [_at(pair.max_ulp_by_step, step) for _, pair in named]
        if any(counts):
            both = [value for pair in zip(counts, ulps, strict=True) for value in pair]
            rows.append([str(step), *("-" if value is None else f"{value:,}" for value in both)])
    return Table(headings, rows[:_MOST_ROWS], "The numbers, step by step", folded=True)


def _at(values: Sequence[int | None], step: int) -> int | None:
    return values[step] if step < len(values) else None


def token_map(check: Check, document: Run) -> TokenMap | None:
    """The first divergence on the image; None where tokens do not lie on the image's grid."""
    first, size = check.first_divergence, [document.request.get(side) for side in ("height", "width")]
    try:
        drawn = msgspec.convert(check.data.get("map"), Tokens)
        height, width = msgspec.convert(size, tuple[int, int])
    except msgspec.ValidationError:
        return None
    side = math.isqrt(height * width // len(drawn.tokens)) if drawn.tokens else 0
    rows, columns = (height // side, width // side) if side else (0, 0)
    if first is None or rows * columns != len(drawn.tokens) or not set(drawn.tokens) <= set(".123456789"):
        return None
    ninths = [0 if token == "." else int(token) for token in drawn.tokens]
    grid = tuple(tuple(ninths[r * columns : (r + 1) * columns]) for r in range(rows))
    when = "before step 0" if first.step is None or first.step < 0 else f"after step {first.step}"
    there = [(r, c) for r, row in enumerate(grid) for c, token in enumerate(row) if token]
    said = f"{len(there)} of {rows * columns} tokens of {first.tensor} {when} hold other bytes"
    at = f"; the first lies in row {there[0][0]}, column {there[0][1]} of {rows} by {columns}" if there else ""
    return TokenMap(said + at, grid)
