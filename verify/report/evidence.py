"""What the pictures of a report show, taken from its findings: agreement by step and rank, growth, a map of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verify.report.document import RunReport
from verify.verdict import Finding, Verdict

# Bagel's latent token covers 16 x 16 pixels.
_PIXELS_PER_TOKEN_SIDE = 16
_COMPARED_WITH = {
    "ranks_agree": "each rank with the other ranks",
    "matches_reference": "each rank with the reference",
    "loops_agree": "the loops with each other, rank by rank",
}


@dataclass(frozen=True)
class Strip:
    """One rank over all steps.

    Attributes:
        label: whose.
        states: for each step the share, 0 to 1, of those compared with it that hold other bytes; None if not compared.
    """

    label: str
    states: tuple[float | None, ...]

    @property
    def said(self) -> str:
        """The strip in words."""
        compared = [state for state in self.states if state is not None]
        differing = [step for step, state in enumerate(self.states) if state]
        if not compared:
            return "not compared"
        if not differing:
            return f"agrees in {len(compared)} of {len(self.states)} steps"
        first, count = differing[0], len(differing)
        if differing == list(range(first, len(self.states))) and count > 1:
            return f"differs from step {first} on"
        return f"differs in step {first} alone" if count == 1 else f"differs in {count} steps, first in step {first}"


@dataclass(frozen=True)
class Grid:
    """One comparison of one loop: a strip for each rank.

    Attributes:
        loop: whose.
        what: what was compared with what.
        verdict: of the check.
        strips: one a rank.
    """

    loop: str
    what: str
    verdict: Verdict
    strips: tuple[Strip, ...]


@dataclass(frozen=True)
class Series:
    """One pair of sides over the steps; None where there is no number."""

    label: str
    mismatched: tuple[int, ...]
    max_ulp: tuple[int | None, ...]


@dataclass(frozen=True)
class TokenMap:
    """Which tokens of the image differ.

    Attributes:
        what: which tensor, after which step.
        sides: whose.
        rows: of ninths of a token's channels that differ, 0 to 9.
    """

    what: str
    sides: tuple[str, str]
    rows: tuple[tuple[int, ...], ...]

    @property
    def differing(self) -> list[tuple[int, int]]:
        """Row and column of every token that differs."""
        return [(r, c) for r, row in enumerate(self.rows) for c, ninths in enumerate(row) if ninths]


def grids(report: RunReport) -> list[Grid]:
    """Every comparison of ``x_t`` that was made, in the order of the findings."""
    found = []
    for finding in report.findings:
        if finding.name in _COMPARED_WITH:
            strips = tuple(_strips(finding, report))
            found.append(Grid(finding.loop, _COMPARED_WITH[finding.name], finding.verdict, strips))
    return found


def _strips(finding: Finding, report: RunReport) -> list[Strip]:
    pairs = _pairs(finding)
    if not pairs:
        agreed = finding.compared.steps if finding.verdict is Verdict.PASS else 0
        states = (0.0,) * agreed + (None,) * max(0, report.steps - agreed)
        return [Strip(f"rank {rank}", states) for rank in range(report.world_size)]
    strips = []
    for rank in sorted({rank for pair in pairs for rank in _judged(finding, pair)}):
        mine = [pair["mismatched_by_step"] for pair in pairs if rank in _judged(finding, pair)]
        steps = max(report.steps, *map(len, mine))
        strips.append(Strip(f"rank {rank}", tuple(_share(mine, step) for step in range(steps))))
    return strips


def _judged(finding: Finding, pair: Mapping[str, Any]) -> Sequence[int]:
    """The ranks that a pair says something about; the reference is held to be right."""
    ranks: Sequence[int] = pair["ranks"]
    return ranks[1:] if finding.name == "matches_reference" else ranks


def _share(mismatched: Sequence[Sequence[int]], step: int) -> float | None:
    there = [bool(counts[step]) for counts in mismatched if step < len(counts)]
    return sum(there) / len(there) if there else None


def growth(finding: Finding) -> list[Series]:
    """How the pairs that differ grow apart; empty for a check that compares no ``x_t``."""
    return [
        Series(_names(finding, pair), tuple(pair["mismatched_by_step"]), tuple(pair["max_ulp_by_step"]))
        for pair in _pairs(finding)
        if any(pair["mismatched_by_step"])
    ]


def _names(finding: Finding, pair: Mapping[str, Any]) -> str:
    """Whom a pair compares, no longer than is plain from the finding it belongs to."""
    a, b = pair["ranks"]
    if finding.name == "ranks_agree":
        return f"ranks {a} and {b}"
    return f"the reference and rank {b}" if finding.name == "matches_reference" else " and ".join(pair["sides"])


def token_map(report: RunReport, finding: Finding) -> TokenMap | None:
    """The first divergence on the image; None where tokens do not lie on the image's grid."""
    drawn = finding.data.get("map")
    first = finding.first_divergence
    if not isinstance(drawn, Mapping) or not isinstance(drawn.get("tokens"), str) or first is None:
        return None
    rows, columns = (report.request[side] // _PIXELS_PER_TOKEN_SIDE for side in ("height", "width"))
    tokens = drawn["tokens"]
    if len(tokens) != rows * columns or not set(tokens) <= set(".123456789"):
        return None
    ninths = [0 if token == "." else int(token) for token in tokens]
    when = "before step 0" if first.step is None or first.step < 0 else f"after step {first.step}"
    a, b = drawn["sides"]
    return TokenMap(
        f"{first.tensor} {when}", (a, b), tuple(tuple(ninths[r * columns : (r + 1) * columns]) for r in range(rows))
    )


def _pairs(finding: Finding) -> list[Mapping[str, Any]]:
    """The pairs that hold all a picture needs: documents of earlier versions hold less."""
    pairs = finding.data.get("pairs", ())
    return [p for p in pairs if isinstance(p, Mapping) and {"ranks", "mismatched_by_step", "max_ulp_by_step"} <= set(p)]
