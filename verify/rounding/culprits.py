"""The first operator of a step whose result rounding does not explain. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from verify.rounding.fits import fitted
from verify.rounding.operators import REST, Call, Sketches, StepSketches
from verify.rounding.tails import ratio_at

FALSE_ALARM = 1e-6


@dataclass(frozen=True)
class Culprit:
    """An operator whose result lies beyond what the draws allow.

    Attributes:
        rank: whose.
        call: which.
        seen: its root mean square deviation over that of the draws.
        allowed: how large that may be.
    """

    rank: int
    call: Call
    seen: float
    allowed: float


def first_unexplained(loop: Sequence[Sketches | None], reference: StepSketches, rank: int) -> Culprit | None:
    """The first operator, in the reference's order, that some rank computes beyond what rounding explains.

    A branch's operators are those of the ranks that evaluated it, ``rank`` before the others; the combine's are its
    own. None where every operator that both sides have is explained: then differences add up, or come in between.

    Args:
        loop: each rank's sketches of the step.
        reference: the reference's, with its draws.
        rank: the one that was seen to deviate.
    """
    draws = [drawn for drawn in reference.drawn if drawn.keys() == reference.taken.keys()]
    calls = list(reference.taken)
    if len(draws) < 2 or not calls:
        return None
    energies = np.array(
        [[float((drawn[call] - reference.taken[call]).square().sum()) for call in calls] for drawn in draws]
    )
    fit, mean = fitted(energies), energies.mean(0)
    freedom = np.nan_to_num(fit.freedom, nan=1.0)
    order = sorted(range(len(loop)), key=lambda r: (r != rank, r))
    comparable = {r: _comparable(found, reference.taken) for r in order if (found := loop[r]) is not None}
    for number, call in enumerate(calls):
        for r in order:
            found = loop[r]
            if found is None or call not in comparable[r] or (call.part == REST and r != rank):
                continue
            energy = float((found[comparable[r][call]] - reference.taken[call]).square().sum())
            if energy == 0.0:
                continue
            ratio = energy / mean[number] if mean[number] > 0 else math.inf
            allowed = ratio_at(FALSE_ALARM / len(calls), freedom[number], len(draws) * freedom[number])
            if not ratio <= allowed:
                return Culprit(r, call, math.sqrt(ratio), math.sqrt(allowed))
    return None


def _comparable(loop: Sketches, reference: Sketches) -> dict[Call, Call]:
    """For calls of the reference those of the loop that stand for the same number.

    Where a module makes the same calls on both sides, each for each; where it computes in another way, what it ends
    with.
    """
    found: dict[Call, Call] = {}
    ours = _by_module(loop)
    for place, calls in _by_module(reference).items():
        own = ours.get(place, [])
        if [(c.name, c.shape) for c in own] == [(c.name, c.shape) for c in calls]:
            found.update(zip(calls, own, strict=True))
        elif own and own[-1].shape == calls[-1].shape and place[0] != REST:
            found[calls[-1]] = own[-1]
    return found


def _by_module(sketches: Sketches) -> dict[tuple[str, str], list[Call]]:
    """The calls of each module in each part, in the order in which they were made."""
    found: dict[tuple[str, str], list[Call]] = {}
    for call in sketches:
        found.setdefault((call.part, call.module), []).append(call)
    return found
