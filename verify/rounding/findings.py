"""A decision about a loop, told as a finding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from verify.bits import first_difference, same_bits
from verify.rounding.decide import Decision, Deviates, Word, decide
from verify.rounding.deviations import CHANNEL, TOKEN, WHOLE, Deviation
from verify.rounding.fits import Fit
from verify.trace.trace import Trace
from verify.verdict import Compared, Divergence, Finding, Verdict

NAME = "rounding_explains"
_MOST_STEPS = 8
_VERDICTS = {
    Word.EQUAL: Verdict.PASS,
    Word.EXPLAINED: Verdict.EXPLAINED,
    Word.NOT_EXPLAINED: Verdict.FAIL,
    Word.UNKNOWN: Verdict.UNKNOWN,
}


def rounding_explains(
    traces: Sequence[Trace], start: Tensor, steps: Sequence[Deviation], false_alarm: float, draws: int
) -> Finding:
    """Judges every rank of one loop.

    What is not computed is judged in bytes: that the loop begins with the request's noise, and that it returns the last
    ``x_t`` that it showed.

    Args:
        traces: one a rank.
        start: the request's noise.
        steps: how far each step lies from the reference.
        false_alarm: the probability, for this loop, of "not explained" where everything is rounding.
        draws: how often each step was repeated.
    """
    loop = traces[0].loop
    steps = sorted(steps, key=lambda step: (step.step, step.ranks))
    covered = {(step.step, rank) for step in steps for rank in step.ranks}
    expected = {(s, t.rank) for t in traces for s in range(t.steps) if s or t.start is not None}
    compared = Compared(len({step for step, _ in covered}), len(covered) * start.numel())
    moved = _other_bytes(traces, start)
    if moved is not None:
        return Finding(NAME, loop, Verdict.FAIL, f"{Word.NOT_EXPLAINED}: {moved[0]}", compared, moved[1])
    if covered != expected or not covered:
        summary = f"{len(expected - covered)} of {len(expected)} steps were not computed anew"
        return Finding(NAME, loop, Verdict.UNKNOWN, summary, compared)
    decision = decide(steps, false_alarm, draws)
    verdict = _VERDICTS[decision.word]
    divergence = None
    if verdict is Verdict.FAIL:
        first = decision.malformed or decision.exceeding[0]
        divergence = Divergence(first.step, (0, first.ranks[0]), "x_t", ("reference", loop))
    details = tuple(_details(decision))
    summary = f"{decision.word}: {_summary(decision, loop)}"
    return Finding(NAME, loop, verdict, summary, compared, divergence, details, {"rounding": told(decision)})


def _other_bytes(traces: Sequence[Trace], start: Tensor) -> tuple[str, Divergence] | None:
    """What no rounding touches and is not the same all the same."""
    for trace in traces:
        pairs = [(-1, start, trace.start, "begins with another x_t than the request's noise")]
        if trace.is_last and len(trace.x_t):
            last = trace.steps - 1
            pairs.append((last, trace.after(last), trace.final, "returns another latent than its last x_t"))
        for step, right, seen, what in pairs:
            if seen is None or same_bits(right, seen):
                continue
            same = (right.shape, right.dtype) == (seen.shape, seen.dtype)
            difference = first_difference(right, seen) if same else None
            sides = ("reference", trace.loop) if step < 0 else None
            where = Divergence(step, (0 if step < 0 else trace.rank, trace.rank), "x_t", sides, difference)
            return f"rank {trace.rank} of {trace.loop} {what}", where
    return None


def _summary(decision: Decision, loop: str) -> str:
    apart = decision.judged - decision.equal
    if decision.word is Word.EQUAL:
        return f"each of {decision.judged} steps, computed anew from the x_t before it, gives the same bytes"
    if decision.word is Word.UNKNOWN:
        return decision.why
    if decision.word is Word.EXPLAINED:
        nearest = max(decision.nearest, key=lambda each: each.seen / each.allowed)
        return (
            f"{apart} of {decision.judged} steps of {loop} are other bytes, and none lies further off than rounding "
            f"may put it; the nearest to its limit is {_unit(nearest)} in step {nearest.step}: {_ratio(nearest)}"
        )
    if decision.malformed is not None:
        bad = decision.malformed
        return f"{_ranks(bad.ranks)} of {loop} after step {bad.step}: {bad.form or 'x_t is not finite'}"
    first = decision.exceeding[0]
    return f"{_unit(first)} of {_ranks(first.ranks)} of {loop} after step {first.step} deviates {_ratio(first)}"


def _details(decision: Decision) -> list[str]:
    lines = []
    if decision.exceeding:
        steps = sorted({each.step for each in decision.exceeding})
        some = ", ".join(map(str, steps[:_MOST_STEPS])) + (", ..." if len(steps) > _MOST_STEPS else "")
        lines.append(f"{len(steps)} of {decision.judged} steps are not explained: {some}")
        first = decision.exceeding[0]
        others = [each for each in decision.exceeding[1:] if (each.step, each.ranks) == (first.step, first.ranks)]
        lines += [f"in the same step, {_unit(each)}: {_ratio(each)}" for each in others]
        lines.append(f"as far or further by rounding alone, in this unit: probability {_probability(first)}")
    elif decision.nearest:
        lines += [f"{_unit(each)} in step {each.step}: {_ratio(each)}" for each in decision.nearest]
    if decision.fits:
        lines.append(
            f"{decision.draws} draws of randomised rounding a step; the probability of a false alarm is at most "
            f"{decision.false_alarm:g} in this loop"
        )
    return lines


def _unit(each: Deviates) -> str:
    if each.kind == WHOLE:
        return WHOLE
    return f"{each.kind} {each.index[0]}" if each.kind in (TOKEN, CHANNEL) else f"{each.kind} {list(each.index)}"


def _ratio(each: Deviates) -> str:
    seen = "although no draw moves it" if each.seen == math.inf else f"{each.seen:.3g} times what rounding does to it"
    return f"{seen} (root mean square); {each.allowed:.3g} times would be explained"


def _probability(each: Deviates) -> str:
    return "below 1e-300" if each.probability < 1e-300 else f"{each.probability:.1e}"


def _ranks(ranks: tuple[int, ...]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else "ranks " + ", ".join(map(str, sorted(ranks)))


def told(decision: Decision) -> dict[str, Any]:
    """What the document keeps of a decision; see :class:`verify.report.documents.rounding.Rounding`."""
    return {
        "decision": str(decision.word),
        "false_alarm": decision.false_alarm,
        "draws": decision.draws,
        "judged": decision.judged,
        "equal": decision.equal,
        "nearest": [_told_unit(each) for each in decision.nearest],
        "exceeding": [_told_unit(each) for each in decision.exceeding[:100]],
        "fits": [_told_fit(kind, fit) for kind, fit in decision.fits],
    }


def _told_unit(each: Deviates) -> dict[str, Any]:
    return {
        "step": each.step,
        "ranks": list(each.ranks),
        "kind": each.kind,
        "index": list(each.index),
        "seen": each.seen,
        "allowed": each.allowed,
        "probability": each.probability,
    }


def _told_fit(kind: str, fit: Fit) -> dict[str, Any]:
    return {
        "kind": kind,
        "freedom": fit.pooled,
        "refuted": fit.refuted,
        "levels": [{"level": level, "above": above, "expected": expected} for level, above, expected in fit.levels],
    }
