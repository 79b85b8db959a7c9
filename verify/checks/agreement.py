"""Comparing one trace's ``x_t`` with another's, for the checks that do nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from verify.bits import bits_of, describe, first_difference, first_unlike, same_bits, ulp_distance
from verify.checks.beside_x_t import cause, drawn_before, first_unlike_state, states_compared
from verify.layout import Layout
from verify.trace.further import POINT
from verify.trace.trace import Trace
from verify.verdict import Compared, Divergence, Finding, Verdict

BEFORE_THE_LOOP = -1
FINAL = "the final latent"
# Before the name of further state that differs.
STATE = "state "


@dataclass(frozen=True)
class Pair:
    """Two traces that should hold the same ``x_t``; the first is the one held to be right, where one is."""

    right: Trace
    other: Trace

    def compared(self) -> Compared:
        """How much can be compared: the final latent, each step, and the start where both have it."""
        both_start = self._begins and self.right.start is not None and self.other.start is not None
        steps = len(self._steps)
        tensors = steps + self._ends + both_start
        return Compared(steps, tensors * self.right.final.numel() + states_compared(self.right, self.other))

    @property
    def _steps(self) -> range:
        """The steps whose ``x_t`` both hold."""
        a, b = self.right.kept, self.other.kept
        return range(max(a.start, b.start), min(a.stop, b.stop))

    @property
    def _begins(self) -> bool:
        """Whether where the loop began is compared here: with the first step, of whatever steps the traces hold."""
        return self.right.first == self.other.first == 0

    @property
    def _ends(self) -> bool:
        """Whether how the loop ended is compared here: with the last step that either took."""
        return max(self.right, self.other, key=lambda trace: trace.steps).is_last

    def divergence(self) -> Divergence | None:
        """The first place where they differ, structure before values; None if every byte agrees."""
        a, b = self.right, self.other
        if self._begins and a.start is not None and b.start is not None:
            # A loop may cast x_t for its network: then what the other began with is cast as it did.
            start, other = _in_one_dtype(a.start, b.start)
            if not same_bits(start, other):
                return self._at(BEFORE_THE_LOOP, "x_t", start, other)
        unlike = first_unlike(a.over(self._steps), b.over(self._steps))
        state = first_unlike_state(a, b)
        if state is not None and (unlike is None or state.step < self._steps[unlike] + state.is_point):
            return replace(self._where(state.step, STATE + state.told), difference=state.difference)
        if unlike is not None:
            step = self._steps[unlike]
            return self._at(step, "x_t", a.after(step), b.after(step))
        if not self._ends:
            return None
        if a.steps != b.steps:
            return self._where(min(a.steps, b.steps), f"number of steps: {a.steps} and {b.steps}")
        if not same_bits(a.final, b.final):
            return self._at(a.steps - 1, FINAL, a.final, b.final)
        return None

    def _at(self, step: int, tensor: str, a: Tensor, b: Tensor) -> Divergence:
        packing = self.right.packing
        if packing is not None and packing == self.other.packing and (part := packing.first_unlike(a, b)) is not None:
            return replace(self._where(step, f"{tensor} of {part[0]}"), difference=first_difference(*part[1:]))
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            return self._where(step, f"{tensor}: {describe(a)} and {describe(b)}")
        return replace(self._where(step, tensor), difference=first_difference(a, b))

    def _where(self, step: int, tensor: str) -> Divergence:
        a, b = self.right, self.other
        sides = None if a.loop == b.loop else (a.loop, b.loop)
        replicas = None if a.replica is None or b.replica is None else (a.replica, b.replica)
        if replicas is not None and a.replica != b.replica:
            sides = (f"replica {a.replica}", f"replica {b.replica}")
        return Divergence(step, (a.rank, b.rank), tensor, sides, replicas=replicas)

    def mismatched_by_step(self) -> list[int]:
        """For each step, how many elements differ."""
        a, b = self.right.x_t, self.other.x_t
        return [
            int((bits_of(x) != bits_of(y)).sum()) if (x.shape, x.dtype) == (y.shape, y.dtype) else x.numel()
            for x, y in zip(a, b, strict=False)
        ]

    def max_ulp_by_step(self) -> list[int | None]:
        """For each step, how far the most distant elements are apart; None where a NaN or no float has no distance."""
        return [_max_ulp(x, y) for x, y in zip(self.right.x_t, self.other.x_t, strict=False)]

    def tokens_at(self, divergence: Divergence) -> str | None:
        """One character a token of the tensors that differ there: ``.`` if every byte agrees, else the ninths of its
        channels that differ, rounded up. None where there are no tokens of one shape and dtype to compare.
        """
        a, b = (_tensor_at(trace, divergence) for trace in (self.right, self.other))
        if a is None or b is None or (a.shape, a.dtype) != (b.shape, b.dtype) or a.ndim != 2 or not a.numel():
            return None
        differing = (bits_of(a) != bits_of(b)).sum(1)
        ninths = -(-9 * differing // a.shape[1])
        return "".join(".123456789"[n] for n in ninths.tolist())


def of_shard(whole: Trace, other: Trace, layout: Layout | None) -> Trace:
    """What ``other``'s rank must hold of a trace of all of ``x_t``; where it showed more than that, it holds more."""
    if layout is None or layout.cut is None:
        return whole
    shard = layout.of(other.rank).shard

    def part(tensor: Tensor, theirs: Tensor) -> Tensor:
        return tensor if tensor.shape == theirs.shape else layout.part(tensor, shard)

    start = whole.start
    return replace(
        whole,
        start=start if start is None or other.start is None else part(start, other.start),
        x_t=torch.stack([layout.part(x_t, shard) for x_t in whole.x_t]) if len(whole.x_t) else other.x_t[:0],
        final=part(whole.final, other.final),
        further=_cut(whole.further, whole.final.shape, lambda x_t: layout.part(x_t, shard)),
    )


def _cut(shown: Any, shape: torch.Size, part: Callable[[Tensor], Tensor]) -> Any:
    """Of what was shown beside ``x_t``, whatever has its shape is cut as it is."""
    if isinstance(shown, Tensor):
        return part(shown) if shown.shape == shape else shown
    if isinstance(shown, Mapping):
        return {key: _cut(each, shape, part) for key, each in shown.items()}
    return type(shown)(_cut(each, shape, part) for each in shown) if isinstance(shown, (list, tuple)) else shown


def _in_one_dtype(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if a.dtype == b.dtype or not (a.is_floating_point() and b.is_floating_point()):
        return a, b
    narrow = min(a.dtype, b.dtype, key=lambda dtype: dtype.itemsize)
    return a.to(narrow), b.to(narrow)


def _tensor_at(trace: Trace, divergence: Divergence) -> Tensor | None:
    if divergence.tensor == FINAL:
        return trace.final
    step = _step(divergence)
    if step == BEFORE_THE_LOOP:
        return trace.start
    return trace.after(step) if step in trace.kept else None


def _max_ulp(a: Tensor, b: Tensor) -> int | None:
    if (a.shape, a.dtype) != (b.shape, b.dtype) or not a.is_floating_point():
        return None
    if same_bits(a, b):
        return 0
    apart = ulp_distance(a, b)
    return None if apart.mask.any() else int(apart.max())


def agreement(name: str, loop: str, pairs: Sequence[Pair], claim: str, reason_if_empty: str) -> Finding:
    """Judges that each pair agrees in every byte.

    Args:
        name: of the check.
        loop: the loop judged, or ``*``.
        pairs: what to compare.
        claim: what holds if they all agree, for the summary.
        reason_if_empty: why there is nothing to compare, if there is not.
    """
    if not pairs:
        return Finding(name, loop, Verdict.UNKNOWN, reason_if_empty)
    compared = Compared(min(pair.compared().steps for pair in pairs), sum(pair.compared().elements for pair in pairs))
    judged = [(pair, pair.divergence()) for pair in pairs]
    broken = [(pair, divergence) for pair, divergence in judged if divergence is not None]
    if not broken:
        if not compared.steps:
            return Finding(name, loop, Verdict.UNKNOWN, "no step was observed: there was nothing to compare", compared)
        return Finding(name, loop, Verdict.PASS, claim, compared)
    pair, first = min(broken, key=lambda found: (_step(found[1]), not found[1].tensor.startswith(STATE + POINT)))
    why = cause(pair.right, pair.other, _step(first))
    details: tuple[str, ...] = (why,) if why is not None else ()
    details += tuple(_sentence(p, d) for p, d in broken if p is not pair)
    hint = drawn_before(pair.right, pair.other) if why is None and _step(first) <= 0 else None
    details += () if hint is None else (hint,)
    details += tuple(f"{p.right.name} and {p.other.name} agree in every byte" for p, d in judged if d is None)
    return Finding(
        name,
        loop,
        Verdict.FAIL,
        _sentence(pair, first),
        compared,
        first,
        details,
        data={
            "pairs": [
                {
                    "sides": [p.right.name, p.other.name],
                    "ranks": [p.right.rank, p.other.rank],
                    "mismatched_by_step": p.mismatched_by_step(),
                    "max_ulp_by_step": p.max_ulp_by_step(),
                    "of": p.right.final.numel(),
                }
                for p in pairs
            ],
            "map": {"sides": [pair.right.name, pair.other.name], "tokens": pair.tokens_at(first)},
        },
    )


def _step(divergence: Divergence) -> int:
    assert divergence.step is not None  # Between two traces it is always known.
    return divergence.step


def _sentence(pair: Pair, divergence: Divergence) -> str:
    step = _step(divergence)
    when = "before step 0" if step == BEFORE_THE_LOOP else f"after step {step}"
    return f"{pair.right.name} and {pair.other.name} differ in {divergence.tensor} {when}"
