"""The floating-point formats that the networks are run in, and how PyTorch computes with each.

What PyTorch does, established by experiment on the CPU (2.13) and asserted in the tests:

- an elementwise operation on bfloat16 or float16 is computed in float32 and then rounded: two roundings;
- a Python float multiplies as a float32 there, and as the tensor's own dtype elsewhere; added, it may be rounded to the
  tensor's dtype first (float16 then loses Bagel's 1e-8 altogether);
- ``vector_norm``, matrix products and attention accumulate in float32 for both, and round once at the end;
- subnormal numbers are kept, unless ``torch.set_flush_denormal`` is on: nothing here holds under it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """A binary floating-point format.

    Attributes:
        name: as PyTorch calls it.
        width: bits of a number.
        mantissa: bits of its fraction; the leading 1 is not stored.
    """

    name: str
    width: int
    mantissa: int

    @property
    def bias(self) -> int:
        """What is added to an exponent before it is stored; also the greatest exponent of a finite number."""
        return (1 << (self.width - 2 - self.mantissa)) - 1

    @property
    def unit(self) -> float:
        """The unit roundoff: rounding to nearest errs by at most ``unit * |x|`` unless it over- or underflows."""
        return 2.0 ** -(self.mantissa + 1)

    @property
    def largest(self) -> float:
        """The largest finite number."""
        return (2 - 2.0**-self.mantissa) * 2.0**self.bias

    @property
    def least(self) -> float:
        """The smallest positive subnormal number. Rounding below the normal range errs by at most half of it."""
        return 2.0 ** (1 - self.bias - self.mantissa)

    @property
    def compute(self) -> Format:
        """What PyTorch computes in for tensors of this format."""
        return FLOAT32 if self.width == 16 else self


BFLOAT16 = Format("bfloat16", 16, 7)
FLOAT16 = Format("float16", 16, 10)
FLOAT32 = Format("float32", 32, 23)
FLOAT64 = Format("float64", 64, 52)

FORMATS = {f.name: f for f in (BFLOAT16, FLOAT16, FLOAT32, FLOAT64)}


def format_of(dtype: str) -> Format:
    """The format called ``dtype``.

    Raises:
        ValueError: there is none.
    """
    if dtype not in FORMATS:
        raise ValueError(f"dtype is {dtype!r}, expected one of {', '.join(FORMATS)}")
    return FORMATS[dtype]
