"""What two traces hold beside ``x_t``: further state, which must agree, and random generators, which explain."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from torch import Tensor

from verify.bits import describe, first_difference, same_bits
from verify.trace.further import POINT, Leaf, leaves
from verify.trace.generators import BEFORE_EVALUATING, BEFORE_LOOP, BEFORE_PREPARING, GLOBALS, GeneratorHistory
from verify.trace.trace import Trace
from verify.verdict import Difference

_NONE = GeneratorHistory()


@dataclass(frozen=True)
class Unlike:
    """Further state that is not the same in two traces.

    Attributes:
        step: after which it was shown; -1 before the first step.
        name: of it.
        words: both values, where they are no tensors of one shape and dtype; else empty.
        difference: of two such tensors.
    """

    step: int
    name: str
    words: str = ""
    difference: Difference | None = None

    @property
    def is_point(self) -> bool:
        """Whether it is where a sampler evaluated within the step: that comes before the step's ``x_t``."""
        return self.name.startswith(POINT)

    @property
    def told(self) -> str:
        """Its name, with both values where they are short."""
        return f"{self.name} ({self.words})" if self.words else self.name


def first_unlike_state(a: Trace, b: Trace) -> Unlike | None:
    """The first further state that both traces show under one name and that is not the same."""
    return next(_unlike_states(a, b), None)


def states_compared(a: Trace, b: Trace) -> int:
    """How many elements of further state both show."""
    return sum(
        leaf.numel() if isinstance(leaf, Tensor) else 1
        for step in a.further.keys() & b.further.keys()
        for key in a.further[step].keys() & b.further[step].keys()
        for _, leaf in leaves(key, a.further[step][key])
    )


def _unlike_states(a: Trace, b: Trace) -> Iterator[Unlike]:
    for step in sorted(a.further.keys() & b.further.keys()):
        ours, theirs = a.further[step], b.further[step]
        for key in [key for key in ours if key in theirs]:
            mine, other = dict(leaves(key, ours[key])), dict(leaves(key, theirs[key]))
            for name in dict.fromkeys((*mine, *other)):
                if name not in mine or name not in other:
                    yield Unlike(step, name, "there and missing" if name in mine else "missing and there")
                elif (found := _unlike(step, name, mine[name], other[name])) is not None:
                    yield found


def _unlike(step: int, name: str, a: Leaf, b: Leaf) -> Unlike | None:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if same_bits(a, b):
            return None
        if (a.shape, a.dtype) == (b.shape, b.dtype):
            return Unlike(step, name, difference=first_difference(a, b))
        return Unlike(step, name, f"{describe(a)} and {describe(b)}")
    # Of floats the digits count, not ==: NaN agrees with itself, and 0.0 not with -0.0.
    if not isinstance(a, Tensor) and not isinstance(b, Tensor) and (type(a), repr(a)) == (type(b), repr(b)):
        return None
    return Unlike(step, name, " and ".join(describe(x) if isinstance(x, Tensor) else repr(x) for x in (a, b)))


def cause(a: Trace, b: Trace, step: int) -> str | None:
    """The random generator behind a difference that begins in ``step``: it moved there and is not the same in both."""
    ours, theirs = a.generators or _NONE, b.generators or _NONE
    moment = BEFORE_EVALUATING if step < 0 else step
    for name in _shown_first(ours, theirs):
        moved = [trace for trace in (a, b) if (trace.generators or _NONE).moved(name, moment)]
        if moved and _differs(ours, theirs, name, moment):
            where = "before the first evaluation" if step < 0 else f"in step {step}"
            who = " and ".join(trace.name for trace in moved)
            return (
                f"cause: {who} drew from {name} {where}, and its state is not the same on the two "
                f"{_since(ours, theirs, name, moment)}"
            )
    return None


def harmless(traces: Sequence[Trace]) -> tuple[str, ...]:
    """Generators that a loop moved, that are not the same on two ranks, and on which no ``x_t`` depends."""
    told = {}
    for a, b in combinations(traces, 2):
        ours, theirs = a.generators or _NONE, b.generators or _NONE
        for name in _shown_first(ours, theirs):
            last = max(when for states in (ours, theirs) for when, _ in states.states.get(name, ((BEFORE_LOOP, ""),)))
            moves = ours.moved_in_loop(name) or theirs.moved_in_loop(name)
            if (moves or name not in GLOBALS) and name not in told and _differs(ours, theirs, name, last):
                since = _since(ours, theirs, name, last)
                told[name] = f"no x_t depends on {name}, which differs between rank {a.rank} and rank {b.rank} {since}"
    return tuple(told.values())


def _shown_first(ours: GeneratorHistory, theirs: GeneratorHistory) -> list[str]:
    """Those that a target shows are likelier to be drawn from on purpose than those of the process."""
    return sorted(dict.fromkeys((*ours.states, *theirs.states)), key=lambda name: name in GLOBALS)


def _differs(ours: GeneratorHistory, theirs: GeneratorHistory, name: str, moment: int) -> bool:
    return any(ours.at(name, when) != theirs.at(name, when) for when in (moment - 1, moment))


def _since(ours: GeneratorHistory, theirs: GeneratorHistory, name: str, moment: int) -> str:
    """From when on it has not been the same."""
    since = moment
    while since > BEFORE_PREPARING and ours.at(name, since - 1) != theirs.at(name, since - 1):
        since -= 1
    if since >= 0:
        return f"since step {since}"
    return "since before the first step" if since == BEFORE_EVALUATING else "since before the loop"


def drawn_before(a: Trace, b: Trace) -> str | None:
    """The generator that preparing the request moved and left unlike on the two, so that contexts may differ by it.

    It need not be the cause: a network that is made draws weights that a checkpoint then replaces.
    """
    ours, theirs = a.generators or _NONE, b.generators or _NONE
    for name in _shown_first(ours, theirs):
        moved = ours.moved(name, BEFORE_LOOP) or theirs.moved(name, BEFORE_LOOP)
        if moved and ours.at(name, BEFORE_LOOP) != theirs.at(name, BEFORE_LOOP):
            return f"while the request was prepared, {name} was drawn from, and its state is not the same on the two"
    return None
