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
        unit: the unit roundoff: rounding to nearest errs by at most ``unit * |x|`` unless it over- or underflows.
        largest: the largest finite number.
        least: the smallest positive subnormal number; rounding below the normal range errs by at most half of it.
    """

    name: str
    unit: float
    largest: float
    least: float

    @property
    def compute(self) -> Format:
        """What PyTorch computes in for tensors of this format."""
        return FLOAT32 if self.unit > FLOAT32.unit else self


BFLOAT16 = Format("bfloat16", 2.0**-8, (2 - 2.0**-7) * 2.0**127, 2.0**-133)
FLOAT16 = Format("float16", 2.0**-11, (2 - 2.0**-10) * 2.0**15, 2.0**-24)
FLOAT32 = Format("float32", 2.0**-24, (2 - 2.0**-23) * 2.0**127, 2.0**-149)
FLOAT64 = Format("float64", 2.0**-53, (2 - 2.0**-52) * 2.0**1023, 2.0**-1074)

FORMATS = {f.name: f for f in (BFLOAT16, FLOAT16, FLOAT32, FLOAT64)}


def format_of(dtype: str) -> Format:
    """The format called ``dtype``.

    Raises:
        ValueError: there is none.
    """
    if dtype not in FORMATS:
        raise ValueError(f"dtype is {dtype!r}, expected one of {', '.join(FORMATS)}")
    return FORMATS[dtype]
