"""Hypothesis outside a test: it draws values in this process, and simplifies one that fails."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis.strategies import SearchStrategy

from verify.errors import Unjudged


class _Found(Exception):
    """The property fails. Hypothesis then shrinks the value."""


def _harness(
    strategy: SearchStrategy[Any], body: Callable[[Any], None], count: int, from_seed: int, phases: Sequence[Phase]
) -> None:
    """Runs ``body`` on ``count`` drawn values. The same seed gives the same values, whatever ran before."""
    decorate = settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=phases,
        report_multiple_bugs=False,
        verbosity=Verbosity.quiet,
        # These checks are about tests that draw slowly; here the time goes into waiting for ranks.
        suppress_health_check=list(HealthCheck),
    )
    seed(from_seed)(decorate(given(strategy)(body)))()


def draw(strategy: SearchStrategy[Any], count: int, from_seed: int) -> list[Any]:
    """Up to ``count`` distinct values. The same seed gives the same values."""
    drawn: dict[Any, None] = {}
    _harness(strategy, lambda value: drawn.setdefault(value), count, from_seed, [Phase.generate])
    return list(drawn)


def shrink(strategy: SearchStrategy[Any], fails: Callable[[Any], bool], count: int, from_seed: int) -> None:
    """Draws like :func:`draw` until ``fails`` is true, then lets hypothesis simplify that value.

    Raises:
        Unjudged: what ``fails`` raised of that kind: a rank died, say. Nothing more is tried after it.
    """
    ended: list[Unjudged] = []

    def body(value: Any) -> None:
        try:
            failed = not ended and fails(value)
        except Unjudged as reason:
            ended.append(reason)
            return
        if failed:
            raise _Found

    # Hypothesis reports flakiness when a failure does not come back or the time is up.
    with contextlib.suppress(_Found, AssertionError, Exception):
        _harness(strategy, body, count, from_seed, [Phase.generate, Phase.shrink])
    if ended:
        raise ended[0]
