"""The decision: do steps deviate from the reference by no more than rounding can explain?

The probability of a false alarm is chosen beforehand, for all of a loop's steps, ranks and kinds of energy together. It
is shared out (Bonferroni): equally over the kinds, and within a kind over all of its units in all steps. Dependence
between them can only make false alarms rarer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from verify.rounding.deviations import CHANNEL, ELEMENT, KINDS, TOKEN, Array, Deviation
from verify.rounding.fits import REFUTED, Fit, fitted
from verify.rounding.tails import at_least, ratio_above, ratio_at

_ELEMENT_LEVELS = (1e-2, 1e-3, 1e-4, 1e-5)
_ELEMENT_FREEDOM = (1.0, 0.8, 0.65, 0.5, 0.4, 0.3, 0.2, 0.1)


class Word(StrEnum):
    """What is said of bits; ``pass`` is not among it."""

    EQUAL = "equal"
    EXPLAINED = "explained by rounding"
    NOT_EXPLAINED = "not explained"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Deviates:
    """One unit of one step, against what rounding allows.

    Attributes:
        step: the step.
        ranks: those that hold these bytes.
        kind: the kind of energy.
        index: of the token, channel or element; empty for the whole.
        seen: its root mean square deviation over that of the draws.
        allowed: how large that may be.
        probability: of as much or more by rounding alone, in this unit.
    """

    step: int
    ranks: tuple[int, ...]
    kind: str
    index: tuple[int, ...]
    seen: float
    allowed: float
    probability: float


@dataclass(frozen=True)
class Decision:
    """What is said of a loop.

    Attributes:
        word: the decision.
        false_alarm: the probability, chosen beforehand, of "not explained" where everything is rounding.
        draws: how often each step was repeated.
        judged: steps judged, counted once for ranks that hold the same bytes.
        equal: how many of them equal the reference in every byte.
        exceeding: every unit that is not explained, the earliest step first, then the least probable.
        nearest: of each kind the unit that comes nearest to what is allowed.
        fits: of each kind, how energies spread.
        why: where the decision is ``unknown``, the reason.
        malformed: a step whose ``x_t`` has another form than the reference's, or is not finite.
    """

    word: Word
    false_alarm: float
    draws: int
    judged: int
    equal: int
    exceeding: tuple[Deviates, ...] = ()
    nearest: tuple[Deviates, ...] = ()
    fits: tuple[tuple[str, Fit], ...] = ()
    why: str = ""
    malformed: Deviation | None = None


def decide(steps: Sequence[Deviation], false_alarm: float, draws: int) -> Decision:
    """Judges the steps of a loop together.

    Args:
        steps: one for each step and each set of ranks that hold the same bytes, in order.
        false_alarm: the probability to be kept to.
        draws: how often each step that is not equal was repeated.
    """
    equal = sum(step.equal for step in steps)
    told = {"false_alarm": false_alarm, "draws": draws, "judged": len(steps), "equal": equal}
    untaken = next((step for step in steps if step.reason), None)
    if untaken is not None:
        why = f"the reference cannot take step {untaken.step} alone: {untaken.reason}"
        return Decision(Word.UNKNOWN, **told, why=why)  # type: ignore[arg-type]
    malformed = next((step for step in steps if step.form), None)
    apart = [step for step in steps if not step.equal and not step.form]
    infinite = next((step for step in apart if not step.finite), None)
    if malformed is not None or infinite is not None:
        return Decision(Word.NOT_EXPLAINED, **told, malformed=malformed or infinite)  # type: ignore[arg-type]
    if not steps or not apart:
        word = Word.EQUAL if steps else Word.UNKNOWN
        return Decision(word, **told, why="" if steps else "no step was computed anew")  # type: ignore[arg-type]
    exceeding: list[Deviates] = []
    nearest: list[Deviates] = []
    fits: list[tuple[str, Fit]] = []
    for kind in KINDS:
        fit, judged = _of_kind(kind, apart, false_alarm / len(KINDS), draws)
        fits.append((kind, fit))
        exceeding += [each for each in judged if each.seen > each.allowed]
        nearest.append(max(judged, key=lambda each: each.seen / each.allowed))
    exceeding.sort(key=lambda each: (each.step, each.probability, -each.seen / each.allowed))
    refuted = [kind for kind, fit in fits if fit.refuted]
    # A tail that does not fit gives no probability of a false alarm.
    word = Word.UNKNOWN if refuted else Word.NOT_EXPLAINED if exceeding else Word.EXPLAINED
    why = f"the distribution fitted for {', '.join(refuted)} is refuted by the draws" if refuted else ""
    return Decision(word, **told, exceeding=tuple(exceeding), nearest=tuple(nearest), fits=tuple(fits),  # type: ignore[arg-type]
                    why=why)  # fmt: skip


def _of_kind(kind: str, steps: Sequence[Deviation], false_alarm: float, draws: int) -> tuple[Fit, list[Deviates]]:
    """How a kind of energy spreads, and for each step the unit that comes nearest to what is allowed."""
    seen = np.stack([step.seen[kind] for step in steps])
    if kind == ELEMENT:
        fit = _fit_of_elements(steps, draws)
        # The greatest of many: their number is shared out to as well.
        level = false_alarm / (len(steps) * steps[0].elements)
        ratio, freedom = seen, np.full(seen.shape, fit.pooled)
        of = np.full(seen.shape, float(_freedom_of_scales(steps[0], draws)))
    else:
        drawn = np.stack([step.drawn[kind] for step in steps], 1)  # (draws, steps, units)
        fit = fitted(drawn.reshape(draws, -1))
        level = false_alarm / seen.size
        mean = drawn.mean(0)
        # Where no draw moves a unit, rounding does not either.
        ratio = np.divide(seen, mean, out=np.where(seen > 0, math.inf, 0.0), where=mean > 0)
        freedom = np.nan_to_num(fit.freedom.reshape(seen.shape), nan=1.0)
        of = draws * freedom
    return fit, [_nearest(kind, step, ratio[n], freedom[n], of[n], level) for n, step in enumerate(steps)]


def _nearest(kind: str, step: Deviation, ratio: Array, freedom: Array, of: Array, level: float) -> Deviates:
    """The unit of a step that comes nearest to what is allowed."""
    # Units of the same degrees share a limit: only the greatest of each can come nearest.
    best: tuple[float, int, float] | None = None
    for degrees in np.unique(freedom):
        among = np.flatnonzero(freedom == degrees)
        unit = int(among[ratio[among].argmax()])
        limit = ratio_at(level, float(degrees), float(of[unit]))
        part = float(ratio[unit]) / limit
        if best is None or part > best[0]:
            best = part, unit, limit
    assert best is not None
    _, unit, limit = best
    index = {TOKEN: (unit,), CHANNEL: (unit,), ELEMENT: step.element}.get(kind, ())
    probability = ratio_above(float(ratio[unit]), float(freedom[unit]), float(of[unit]))
    return Deviates(step.step, step.ranks, kind, index, math.sqrt(ratio[unit]), math.sqrt(limit), probability)


def _freedom_of_scales(step: Deviation, draws: int) -> int:
    """Degrees of the scale that an element is held against: its token's and its channel's energies over the draws."""
    return draws * min(step.seen[TOKEN].size, step.seen[CHANNEL].size)


def _fit_of_elements(steps: Sequence[Deviation], draws: int) -> Fit:
    """Degrees of freedom of an element's energy: one if deviations are normal, fewer where their tails are heavier."""
    each, kept = steps[0].elements, steps[0].drawn[ELEMENT].shape[1]
    values = np.sort(np.concatenate([step.drawn[ELEMENT].ravel() for step in steps]))
    total = len(steps) * draws * each
    of = float(_freedom_of_scales(steps[0], draws))
    levels: list[tuple[float, int, float]] = []
    refuted, freedom = True, _ELEMENT_FREEDOM[-1]
    for freedom in _ELEMENT_FREEDOM:
        levels = []
        refuted = False
        for level in _ELEMENT_LEVELS:
            # Of each draw only the greatest are known.
            if each * level > kept / 2 or total * level < 1:
                continue
            count = int(values.size - np.searchsorted(values, ratio_at(level, freedom, of), side="right"))
            levels.append((level, count, level * total))
            refuted = refuted or at_least(count, total, level) < REFUTED / len(_ELEMENT_LEVELS)
        if not refuted:
            break
    return Fit(np.full(1, freedom), freedom, draws, refuted, tuple(levels))
