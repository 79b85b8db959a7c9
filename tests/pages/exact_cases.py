"""``python -m tests.pages.exact_cases`` writes ``verify/fuzz/exact_cases.json``: the exact cases of the fuzzer.

They are cases in which nothing is rounded, so that the answer is one bit pattern on every correct machine.

All values are dyadic. The norms of gen and of the guided velocity are rational, with a dyadic ratio. The dtype holds
every intermediate, and the accumulation format holds every partial sum of squares. So the order of summation, a fused
multiply-add and a wider accumulator cannot matter. The one exception is the 1e-8: it is so small beside the norm that
rounding absorbs it. A case is accepted only after :func:`solve` has computed it in rational arithmetic and found all of
this to be true.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from verify.fuzz.case import BRANCHES, FLOATS, Case, Float, Values
from verify.fuzz.exact import ExactCase
from verify.oracle.formats import Format

PATH = Path("verify/fuzz/exact_cases.json")
CASES_PER_KIND = 20
SEED = 20261123
_EPS = Fraction(1e-8)
_SHAPES = (
    (1, 1),
    (1, 4),
    (2, 2),
    (3, 1),
    (1, 7),
    (2, 5),
    (4, 8),
    (3, 13),
    (8, 16),
    (5, 33),
    (16, 17),
    (31, 3),
    (40, 12),
)
# Rows too short for four free squares.
_SHORT = {1: ((1,), (3,), (6,)), 2: ((3, 4), (0, 2), (6, 8)), 3: ((1, 2, 2), (2, 3, 6), (4, 4, 7), (0, 3, 4))}


class Inexact(Exception):
    """A value would be rounded."""


@dataclass(frozen=True)
class Signed:
    """A rational number; ``negative`` tells -0 from +0 (IEEE 754, section 6.3, rounding to nearest)."""

    value: Fraction
    negative: bool

    @classmethod
    def of(cls, value: Fraction) -> Signed:
        """``value``, zero being +0."""
        return cls(value, value < 0)

    def __neg__(self) -> Signed:
        return Signed(-self.value, not self.negative)

    def __add__(self, other: Signed) -> Signed:
        total = self.value + other.value
        if total:
            return Signed.of(total)
        both_negative_zeros = self.value == 0 and self.negative and other.negative
        return Signed(total, both_negative_zeros)

    def __sub__(self, other: Signed) -> Signed:
        return self + -other

    def within(self, form: Format) -> Signed:
        """This number, if ``form`` holds it.

        Raises:
            Inexact: it does not.
        """
        encode(self, form)
        return self


def times(a: Signed, b: Signed) -> Signed:
    """The product."""
    return Signed(a.value * b.value, a.negative != b.negative)


def perfect_root(value: Fraction) -> Fraction:
    """The square root.

    Raises:
        Inexact: it is irrational.
    """
    above, below = math.isqrt(value.numerator), math.isqrt(value.denominator)
    if above * above != value.numerator or below * below != value.denominator:
        raise Inexact(f"the root of {value} is irrational")
    return Fraction(above, below)


def decode(bits: int, form: Float) -> Signed:
    """The number that ``bits`` are; they must be finite."""
    negative, magnitude = bool(bits & form.sign), bits & (form.sign - 1)
    if magnitude >= form.infinity:
        raise Inexact("not a finite number")
    exponent, fraction = magnitude >> form.mantissa, magnitude & ((1 << form.mantissa) - 1)
    if exponent:
        fraction |= 1 << form.mantissa
    value = Fraction(fraction) * Fraction(2) ** (max(exponent, 1) - form.bias - form.mantissa)
    return Signed(-value if negative else value, negative)


def encode(number: Signed, form: Format) -> int:
    """The bits of a number.

    Raises:
        Inexact: the format has no such number.
    """
    sign = number.negative << (form.width - 1)
    size = abs(number.value)
    if not size:
        return sign
    bias = form.bias
    exponent = max(_exponent(size), 1 - bias)
    scaled = size / Fraction(2) ** (exponent - form.mantissa)
    if scaled.denominator != 1 or exponent > bias:
        raise Inexact(f"{form.name} does not hold {number.value}")
    whole = int(scaled)
    if whole < 1 << form.mantissa:
        return sign | whole  # Subnormal.
    return sign | (exponent + bias) << form.mantissa | (whole - (1 << form.mantissa))


def solve(case: Case) -> tuple[int, ...]:
    """The bits of the answer, by rational arithmetic alone.

    Raises:
        Inexact: some intermediate would be rounded.
    """
    form = case.form
    gen, text, *img = ([decode(int(x), form) for x in bits.flatten()] for bits in case.bits().values())
    guided = _extrapolate(text, case.text_scale, gen, form)
    if case.renorm_type == "text_channel":
        guided = _renormed(case, gen, guided)
    if img:
        guided = _extrapolate(img[0], case.img_scale, guided, form)
    if case.renorm_type != "text_channel":
        guided = _renormed(case, gen, guided)
    return tuple(encode(x, form) for x in guided)


def _extrapolate(base: Sequence[Signed], scale: float, towards: Sequence[Signed], form: Float) -> list[Signed]:
    factor = Signed.of(Fraction(scale))
    out = []
    for b, t in zip(base, towards, strict=True):
        difference = (t - b).within(form)
        out.append((b + times(factor, difference).within(form)).within(form))
    return out


def _renormed(case: Case, gen: Sequence[Signed], guided: Sequence[Signed]) -> list[Signed]:
    width = case.size if case.renorm_type == "global" else case.channels
    out: list[Signed] = []
    for start in range(0, case.size, width):
        group = slice(start, start + width)
        factor = _factor(case, gen[group], guided[group])
        out += [times(x, factor).within(case.form) for x in guided[group]]
    return out


def _factor(case: Case, gen: Sequence[Signed], guided: Sequence[Signed]) -> Signed:
    form = case.form
    above, below = (Signed.of(_norm([x.value for x in group], form)).within(form) for group in (gen, guided))
    if below.value:
        # Added, 1e-8 must round away, also where it is added in float32: less than half the gap above the norm.
        gap = Fraction(2) ** (_exponent(below.value) - form.compute.mantissa)
        if gap <= 2 * _EPS:
            raise Inexact("the norm does not absorb 1e-8")
        ratio = above.value / below.value
    elif above.value == 0 and form.name != "float16":
        ratio = Fraction(0)
    else:
        raise Inexact("1e-8 alone is the denominator")
    ratio = Signed.of(ratio).within(form).value
    return Signed.of(min(max(ratio, Fraction(case.renorm_min)), Fraction(1)))


def _norm(values: Sequence[Fraction], form: Float) -> Fraction:
    squares = [v * v for v in values]
    total = sum(squares, Fraction(0))
    if total:
        # All squares are multiples of one unit, and their sum is at most 2^(mantissa + 1) of it: no partial sum rounds.
        unit = Fraction(1, math.lcm(*(s.denominator for s in squares)))
        common = math.gcd(*(int(s / unit) for s in squares))
        accumulates = form.compute
        if total > unit * common * 2 ** (accumulates.mantissa + 1):
            raise Inexact("a partial sum of squares may round")
        for value in (unit * common, total):
            Signed.of(value).within(accumulates)
    return perfect_root(total)


def _exponent(value: Fraction) -> int:
    """``e`` with ``2^e <= value < 2^(e+1)``."""
    e = value.numerator.bit_length() - value.denominator.bit_length()
    return e if Fraction(2) ** e <= value else e - 1


def _square_row(rng: random.Random, count: int, most: int) -> list[int]:
    """``count`` small integers whose squares sum to a square. By Lagrange, four squares make up any remainder."""
    if count <= 3:
        row = list(rng.choice(_SHORT[count]))
    else:
        row = [rng.randint(-most, most) for _ in range(count - 4)]
        total = sum(x * x for x in row)
        root = math.isqrt(total) + rng.randint(1, 3)
        row += _four_squares(root * root - total)
    rng.shuffle(row)
    return [x * rng.choice((-1, 1)) for x in row]


def _four_squares(n: int) -> list[int]:
    limit = math.isqrt(n)
    for a in range(limit, -1, -1):
        for b in range(min(a, math.isqrt(n - a * a)), -1, -1):
            rest = n - a * a - b * b
            for c in range(math.isqrt(rest), -1, -1):
                d = math.isqrt(rest - c * c)
                if d * d == rest - c * c:
                    return [a, b, c, d]
    raise AssertionError("every natural number is a sum of four squares")


def _draw(rng: random.Random, form: Float, renorm_type: str) -> Case:
    """A case that is probably exact. It chooses gen and the guided velocity; the other branches follow from them."""
    tokens, channels = rng.choice(_SHAPES)
    width = tokens * channels if renorm_type == "global" else channels
    zero_rows = rng.random() < 0.15
    gen: list[Fraction] = []
    guided: list[Fraction] = []
    for _ in range(tokens * channels // width):
        row = [Fraction(x) for x in _square_row(rng, width, rng.choice((1, 3, 6)))]
        ratio = Fraction(rng.choice((1, 2, 4, Fraction(1, 2))))
        turned = [ratio * x * rng.choice((-1, 1)) for x in row]
        rng.shuffle(turned)
        gen += [Fraction(0)] * width if zero_rows and rng.random() < 0.5 else row
        guided += turned
    text_scale, img_scale = (rng.choice((2.0, 3.0, 1.5, 1.25, 5.0)) for _ in range(2))
    has_img = rng.random() < 0.5
    branches = [gen]
    if has_img and renorm_type != "text_channel":
        before = [Fraction(rng.randint(-6, 6)) for _ in guided]
        branches += [_base(before, gen, text_scale), _base(guided, before, img_scale)]
    else:
        branches.append(_base(guided, gen, text_scale))
        if has_img:
            branches.append([Fraction(rng.randint(-6, 6)) for _ in guided])
    # From where 1e-8 is absorbed, up to where squares or the format's largest numbers end.
    lowest, highest = {"float64": (30, 200), "float16": (0, 6)}.get(form.name, (0, 40))
    power = Fraction(2) ** rng.randint(lowest, highest)
    return Case(
        dtype=form.name,
        tokens=tokens,
        channels=channels,
        branches=tuple(_listed((x * power for x in branch), form, rng) for branch in branches),
        text_scale=text_scale,
        img_scale=img_scale if has_img else 1.0,
        renorm_type=renorm_type,
        renorm_min=rng.choice((0.0, 0.0, 1.0, 0.5, 0.25)),
    )


def _base(result: Sequence[Fraction], towards: Sequence[Fraction], scale: float) -> list[Fraction]:
    """The base from which ``scale`` times the way to ``towards`` arrives at ``result``."""
    return [t - (r - t) / Fraction(scale - 1) for r, t in zip(result, towards, strict=True)]


def _listed(values: Iterable[Fraction], form: Float, rng: random.Random) -> Values:
    """``values`` as a branch. A zero gets either sign."""
    signed = (Signed(x, x < 0 or (x == 0 and rng.random() < 0.5)) for x in values)
    return Values(listed=tuple(encode(x, form) for x in signed))


def generate(per_kind: int = CASES_PER_KIND, seed: int = SEED) -> list[ExactCase]:
    """``per_kind`` cases for each dtype and renorm type. A seed always gives the same ones."""
    rng = random.Random(seed)
    found: list[ExactCase] = []
    for form in FLOATS.values():
        for renorm_type in ("global", "channel", "text_channel"):
            wanted = len(found) + per_kind
            while len(found) < wanted:
                try:
                    case = _draw(rng, form, renorm_type)
                    found.append(ExactCase(case, solve(case)))
                except Inexact:
                    continue
    return found


def rendered() -> str:
    """The whole file: one case per line, so that a change can be read."""
    lines = ",\n".join(json.dumps(case.to_dict()) for case in generate())
    return (
        f'{{"schema": 1, "kind": "exact combine cases", "branches": {json.dumps(BRANCHES)}, "cases": [\n{lines}\n]}}\n'
    )


if __name__ == "__main__":
    PATH.write_text(rendered(), encoding="utf-8")
