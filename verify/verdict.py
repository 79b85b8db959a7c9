"""Findings, and how they merge into a verdict."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    """Three-valued, as in Jepsen: what could not be judged never passes."""

    PASS = "pass"
    FAIL = "fail"
    UNKNOWN = "unknown"
    # Bits differ, by no more than rounding does; only where a run asks for a reference that cannot be equal in bits.
    EXPLAINED = "explained by rounding"

    @property
    def holds(self) -> bool:
        """Whether what was claimed holds: of bits, or of what rounding makes of them."""
        return self in (Verdict.PASS, Verdict.EXPLAINED)


EXIT_STATUS = {Verdict.PASS: 0, Verdict.EXPLAINED: 0, Verdict.FAIL: 1, Verdict.UNKNOWN: 3}
EXIT_BAD_INPUT = 2


def merge(verdicts: Iterable[Verdict]) -> Verdict:
    """Any fail is fail; else any unknown is unknown; else any explained is explained; pass only if all pass.

    Nothing at all is unknown.
    """
    seen = set(verdicts)
    if Verdict.FAIL in seen:
        return Verdict.FAIL
    if not seen or not seen <= {Verdict.PASS, Verdict.EXPLAINED}:
        return Verdict.UNKNOWN
    return Verdict.EXPLAINED if Verdict.EXPLAINED in seen else Verdict.PASS


@dataclass(frozen=True)
class Compared:
    """How much a check really looked at, so that an empty comparison cannot pass."""

    steps: int = 0
    elements: int = 0


@dataclass(frozen=True)
class Difference:
    """The first place where two tensors of one shape and dtype differ, and how much of them does.

    Attributes:
        index: of the first differing element in row-major order.
        bits: that element of both tensors, hexadecimal, as wide as the dtype.
        values: that element of both tensors, as Python floats or integers.
        ulp: how many representable values lie between them; None if one is a NaN or the dtype is no float.
        mismatched: elements whose bytes differ.
        of: elements compared.
        max_ulp: the greatest ``ulp`` of any differing element; None if any differing element is a NaN.
    """

    index: tuple[int, ...]
    bits: tuple[str, str]
    values: tuple[float | int, float | int]
    ulp: int | None
    mismatched: int
    of: int
    max_ulp: int | None


@dataclass(frozen=True)
class Divergence:
    """The first place where two things that should be the same are not.

    Attributes:
        step: the step after which they differ; -1 is before step 0; None where no step is known.
        ranks: the two ranks compared; the first is the one held to be right where one is.
        tensor: what differs, in words: ``x_t``, ``gen cache, layer 3, keys``.
        sides: what the two ranks stand for where that is not plain: ``("local", "reference")``.
        difference: index, bits, values and counts; None where shapes, dtypes or counts differ.
        replicas: the replicas that the two ranks belong to; None where there is one replica.
    """

    step: int | None
    ranks: tuple[int, int]
    tensor: str
    sides: tuple[str, str] | None = None
    difference: Difference | None = None
    replicas: tuple[int, int] | None = None


@dataclass(frozen=True)
class Finding:
    """What one check says about one loop.

    Attributes:
        name: of the check, as in ``verify/checks/``.
        loop: the loop judged, or ``*`` for a check over all of them.
        verdict: pass, fail or unknown.
        summary: one sentence: what agreed, or what differs.
        compared: how much was looked at.
        first_divergence: where it broke.
        details: further lines of evidence, the most telling first.
        data: evidence for reports, JSON values only.

    Raises:
        ValueError: a pass that compared nothing, or that names a divergence.
    """

    name: str
    loop: str
    verdict: Verdict
    summary: str
    compared: Compared = Compared()
    first_divergence: Divergence | None = None
    details: tuple[str, ...] = ()
    data: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.verdict.holds and self.compared.elements < 1:
            raise ValueError(f"{self.name} passed without having compared anything")
        if self.verdict.holds and self.first_divergence is not None:
            raise ValueError(f"{self.name} passed and names a divergence")
