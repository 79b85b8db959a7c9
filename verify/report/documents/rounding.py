"""How a loop was judged by rounding: part of the document of ``verify run --reference rounding``."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from verify.report.documents.parts import Count, Part

Probability = Annotated[float, Meta(ge=0, le=1)]


class Deviates(Part, frozen=True):
    """One unit of one step against what rounding allows.

    Attributes:
        step: the step.
        ranks: those that hold these bytes.
        kind: ``x_t as a whole``, ``token``, ``channel`` or ``element``.
        index: of the token, channel or element.
        seen: its deviation over what rounding does to it, as root mean squares; a string where that is infinite.
        allowed: how large that may be.
        probability: of as much or more by rounding alone, in this unit.
    """

    step: Count
    ranks: tuple[Count, ...]
    kind: str
    index: tuple[Count, ...]
    seen: float | str
    allowed: float | str
    probability: Probability


class Level(Part, frozen=True):
    """A level of a fitted tail: how many draws lie above it, and how many should."""

    level: Probability
    above: Count
    expected: float


class Fitted(Part, frozen=True):
    """How energies of one kind spread: degrees of freedom of a chi-square, and the test of its tail."""

    kind: str
    freedom: float | str
    refuted: bool
    levels: tuple[Level, ...]


class Rounding(Part, frozen=True):
    """The decision about one loop.

    Attributes:
        loop: which.
        decision: in the words that are said of bits.
        false_alarm: the probability, chosen beforehand, of "not explained" where everything is rounding.
        draws: how often each step was repeated under randomised rounding.
        judged: steps judged, once for ranks that hold the same bytes.
        equal: how many of them equal the reference in every byte.
        nearest: of each kind the unit that comes nearest to what is allowed.
        exceeding: the units that are not explained, first steps first.
        fits: of each kind, how energies spread.
    """

    loop: str
    decision: Literal["equal", "explained by rounding", "not explained", "unknown"]
    false_alarm: Probability
    draws: Count
    judged: Count
    equal: Count
    nearest: tuple[Deviates, ...]
    exceeding: tuple[Deviates, ...]
    fits: tuple[Fitted, ...]
