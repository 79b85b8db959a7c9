"""What hypothesis draws. Simple values come first, because failing cases shrink towards them.

Only the controlling process imports this module: hypothesis never runs in a rank.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from hypothesis import strategies as st

from verify.fuzz.boundary import Bounds
from verify.fuzz.case import FLOATS, LAYOUTS, Case, Float, Values
from verify.request import RENORM_TYPES
from verify.schedule import Schedule

_ODD_CHANNELS = (1, 3, 5, 7, 9, 15, 17, 31, 33, 37, 63, 65, 127)
_EVEN_CHANNELS = (2, 4, 8, 16, 32, 64, 128)
_LARGE_TOKENS = (256, 999, 1001, 1024, 2048, 4095, 4096, 4099)
_MOST_LARGE = 1 << 17


@cache
def dtypes() -> st.SearchStrategy[str]:
    """One of the four formats."""
    return st.sampled_from(tuple(FLOATS))


@cache
def landmarks(form: Float) -> tuple[int, ...]:
    """The bits of the values at which formats change their behaviour."""
    lowest_normal = 1 << form.mantissa
    magnitudes = (
        0,
        form.one,
        form.one + 1,
        form.one - 1,
        lowest_normal,
        lowest_normal - 1,
        1,
        form.infinity - 1,
        form.infinity,
        form.infinity | 1 << (form.mantissa - 1),
        form.infinity | 1,
        form.infinity | ((1 << form.mantissa) - 1),
    )
    return tuple(m | s for s in (0, form.sign) for m in magnitudes)


@cache  # Hypothesis analyses a strategy when it is first used: most of a draw's time otherwise.
def patterns(form: Float) -> st.SearchStrategy[tuple[int, int]]:
    """``(bits, mask)`` as :class:`Values` takes them.

    Most draw ordinary velocities: any sign and mantissa in a few binades. The others fix a landmark, vary its lowest
    bits, or draw any float there is.
    """
    mantissa = (1 << form.mantissa) - 1
    binade = 1 << form.mantissa
    ordinary = st.builds(
        lambda power, mask: (form.one + power * binade, mask),
        st.integers(-4, 4),
        st.sampled_from((form.sign | mantissa, 0, form.sign, form.sign | mantissa | binade, mantissa)),
    )
    dyadic = st.builds(
        lambda k, power: (form.bits(math.ldexp(k, power)), form.sign),
        st.integers(0, 15),
        st.integers(-3, 3),
    )
    magnitude = st.integers(0, form.infinity // binade - 1).map(lambda e: (e * binade, form.sign | mantissa))
    named = st.tuples(st.sampled_from(landmarks(form)), st.sampled_from((0, form.sign, 1, 3)))
    anything = st.tuples(st.integers(0, (1 << form.width) - 1), st.sampled_from((0, (1 << form.width) - 1)))
    return st.one_of(ordinary, dyadic, ordinary, ordinary, named, ordinary, magnitude, anything)


@cache
def values(form: Float, others: tuple[str, ...]) -> st.SearchStrategy[Values]:
    """The elements of a branch: its own, or equal or nearly equal to one of ``others``."""
    bits = st.integers(0, (1 << form.width) - 1)
    edits = st.lists(st.tuples(st.integers(0, 99), st.one_of(st.sampled_from(landmarks(form)), bits)), max_size=2)
    own = st.builds(
        Values,
        patterns=st.lists(patterns(form), min_size=1, max_size=3).map(tuple),
        seed=st.integers(0, 7),
        edits=st.one_of(st.just(()), st.just(()), edits.map(tuple)),
    )
    if not others:
        return own
    # Equal; one ULP apart here and there; near-cancelling; of opposite sign.
    apart = st.sampled_from((0, 1, 7, (1 << form.mantissa // 2) - 1))
    near = st.builds(
        Values,
        patterns=st.tuples(st.tuples(st.sampled_from((0, 0, 0, form.sign)), apart)),
        seed=st.integers(0, 7),
        near=st.sampled_from(others),
    )
    return st.one_of(own, own, near)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, int]:
    """Tokens and channels: mostly a few, sometimes none or thousands; most widths are no multiple of a vector."""
    kind = draw(st.integers(0, 19))
    if kind < 12:
        return draw(st.integers(0, 8)), draw(st.integers(1, 40))
    if kind < 17:
        return draw(st.integers(0, 80)), draw(st.sampled_from(_ODD_CHANNELS + _EVEN_CHANNELS))
    tokens = draw(st.sampled_from(_LARGE_TOKENS))
    fitting = [c for c in _ODD_CHANNELS + _EVEN_CHANNELS if tokens * c <= _MOST_LARGE]
    return tokens, draw(st.sampled_from(fitting))


@cache
def scales() -> st.SearchStrategy[float]:
    """At and around 1, the usual ones, large ones, and the edges of formats."""
    near_one = (1.0, math.nextafter(1.0, 2.0), math.nextafter(1.0, 0.0), 1.0 + 2.0**-23, 1.0 + 2.0**-7)
    large = (7.5, 100.0, 1000.0, 65504.0, 65536.0)
    edges = (2.0**-149, 3.4028234663852886e38, sys.float_info.max, math.inf, math.nan)
    return st.one_of(
        st.sampled_from((4.0, 1.5, 2.0, 3.0)),
        st.sampled_from(near_one),
        st.floats(1.0, 16.0),
        st.floats(1.0, 16.0),
        st.integers(0, 7).flatmap(lambda k: st.sampled_from(large if k < 5 else edges)),
    )


@cache
def renorm_mins() -> st.SearchStrategy[float]:
    """The ends, and between."""
    return st.one_of(st.sampled_from((0.0, 1.0)), st.floats(0.0, 1.0), st.sampled_from((0.1, 0.5, 1e-8)))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any case."""
    form = FLOATS[draw(dtypes())]
    tokens, channels = draw(shapes())
    branches = [draw(values(form, ())), draw(values(form, ("gen",)))]
    if draw(st.booleans()):
        branches.append(draw(values(form, ("gen", "text"))))
    layout = draw(st.one_of(st.just("contiguous"), st.sampled_from(LAYOUTS)))
    has_offset = layout in ("sliced", "gathered", "columns")
    return Case(
        dtype=form.name,
        tokens=tokens,
        channels=channels,
        branches=tuple(branches),
        text_scale=draw(scales()),
        img_scale=draw(scales()) if len(branches) > 2 else 1.0,
        renorm_type=draw(st.sampled_from(RENORM_TYPES)),
        renorm_min=draw(renorm_mins()),
        layout=layout,
        offset=draw(st.integers(1, 17)) if has_offset else 0,
    )


@st.composite
def schedules(draw: st.DrawFn) -> Bounds:
    """Schedules whose bounds fall on a step, or as near to one as a float can."""
    count = draw(st.one_of(st.integers(2, 60), st.integers(2, 1000)))
    shift = draw(st.one_of(st.sampled_from((3.0, 1.0, 2.0, 0.5)), st.floats(0.1, 12.0)))
    points = Schedule.of(count, shift, (0.0, 1.0)).timesteps
    bounds = sorted(draw(_bound(points)) for _ in range(2))
    return Bounds(count, shift, bounds[0], bounds[1])


def _bound(points: Sequence[float]) -> st.SearchStrategy[float]:
    on_a_step = st.builds(lambda t, change: change(t), st.sampled_from(points), st.sampled_from(_CHANGES))
    return st.one_of(st.sampled_from((0.4, 1.0, 0.0)), on_a_step, on_a_step).map(lambda x: min(1.0, max(0.0, x)))


def _rounded(digits: int) -> Callable[[float], float]:
    return lambda t: round(t, digits)


# The step itself; how a person would write it; its neighbours in float64 and in float32.
_CHANGES: tuple[Callable[[float], float], ...] = (
    lambda t: t,
    *(_rounded(digits) for digits in (2, 4, 6, 7, 8)),
    lambda t: math.nextafter(t, 2.0),
    lambda t: math.nextafter(t, -1.0),
    lambda t: float(np.nextafter(np.float32(t), np.float32(2))),
    lambda t: float(np.nextafter(np.float32(t), np.float32(-1))),
)
