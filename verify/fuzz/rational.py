"""Rational numbers with a signed zero, and whether a floating-point format holds them exactly. No torch, no floats."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from verify.fuzz.case import Float


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

    def within(self, form: Float) -> Signed:
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
    bias = form.one >> form.mantissa
    if exponent:
        fraction |= 1 << form.mantissa
    value = Fraction(fraction) * Fraction(2) ** (max(exponent, 1) - bias - form.mantissa)
    return Signed(-value if negative else value, negative)


def encode(number: Signed, form: Float) -> int:
    """The bits of a number.

    Raises:
        Inexact: the format has no such number.
    """
    sign = form.sign if number.negative else 0
    size = abs(number.value)
    if not size:
        return sign
    bias = form.one >> form.mantissa
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= Fraction(2) ** exponent > size
    exponent = max(exponent, 1 - bias)
    scaled = size / Fraction(2) ** (exponent - form.mantissa)
    if scaled.denominator != 1 or exponent > bias:
        raise Inexact(f"{form.name} does not hold {number.value}")
    whole = int(scaled)
    if whole < 1 << form.mantissa:
        return sign | whole  # Subnormal.
    return sign | (exponent + bias) << form.mantissa | (whole - (1 << form.mantissa))
