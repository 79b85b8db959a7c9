"""Claim: a request gives the same bytes, whatever was asked before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from verify.checks.agreement import Pair, agreement
from verify.trace.trace import Trace
from verify.verdict import Finding, Verdict

NAME = "requests_repeat"


@dataclass(frozen=True)
class Between:
    """What a rank held for one request, at two moments.

    Attributes:
        right: where fewer requests came before.
        other: where more did.
        moments: what the two are called.
    """

    right: Trace
    other: Trace
    moments: tuple[str, str]

    @property
    def pair(self) -> Pair:
        """The two traces under names that tell them apart."""
        first, second = self.moments
        right = replace(self.right, loop=f"{self.right.loop}{first}")
        return Pair(right, replace(self.other, loop=f"{self.other.loop}{second}"))


def requests_repeat(loop: str, compared: Sequence[Between], others: int, reason: str = "") -> Finding:
    """Compares every rank's ``x_t`` at the same step of the same request.

    Args:
        loop: the loop judged.
        compared: the moments to compare.
        others: how many other requests lay between.
        reason: why nothing can be compared, where that is so.
    """
    if reason:
        return Finding(NAME, loop, Verdict.UNKNOWN, reason)
    claim = f"the first request gives the same bytes again after {others} other{'s' * (others != 1)}"
    return agreement(NAME, loop, [between.pair for between in compared], claim, "no request was judged twice")


def survived(loop: str, request: str, failing: Finding | None, cause: str = "") -> Finding:
    """The finding on a request that fails after others and passes as the first request of fresh ranks.

    Args:
        loop: the loop judged.
        request: which request, in words.
        failing: what fails after others; None where the loop did not end.
        cause: why it did not end.
    """
    after = cause if failing is None else f"{failing.name}: {failing.summary}"
    summary = (
        f"{request} passes as the first of fresh ranks and not after other requests, so that state of an earlier one "
        f"survives; {after}"
    )
    if failing is None:
        return Finding(NAME, loop, Verdict.FAIL, summary)
    return replace(failing, name=NAME, loop=loop, summary=summary)
