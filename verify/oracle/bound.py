"""How far PyTorch's ``combine_cfg`` may be from its float64 value: a rigorous bound for each element.

Cancellation needs no case of its own: where ``gen`` and ``text`` nearly agree, errors are bounded absolutely, in units
of what was subtracted. Of PyTorch only what :mod:`verify.oracle.formats` lists is assumed, any order of summation in
the norms, fused multiply-adds or none, and gradual underflow. Autocast, which may leave the renorm in float32, only
removes roundings. The oracle's own float64 errors are in the bound too; they matter for float64 velocities alone.

What a bound says about PyTorch's element ``y`` and the oracle's ``z`` (:func:`within` asks just this):

- bound finite, z finite: ``|y - z| <= bound``;
- bound zero, z infinite or NaN: y is the same infinity, or a NaN;
- bound infinite: nothing. An intermediate result may overflow in PyTorch's format, or a zero norm may be divided by a
  zero norm, as happens in float16, where the 1e-8 is rounded to zero.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

from verify.oracle.ball import Ball, CombineBound, Mask
from verify.oracle.combine import Array, Float64Combine, combine
from verify.oracle.formats import FLOAT64, format_of

# The bound is computed in float64 from non-negative numbers, so its own relative error is at most the number of
# operations in a row, sums over elements apart; these are fewer than this.
_OPERATIONS = 100


def combine_oracle(
    gen: Float64[np.ndarray, "tokens channels"],
    text: Float64[np.ndarray, "tokens channels"],
    img: Float64[np.ndarray, "tokens channels"] | None,
    text_scale: float,
    img_scale: float,
    renorm_type: str,
    renorm_min: float,
) -> Float64[np.ndarray, "tokens channels"]:
    """The combine in float64, under the argument names of ``combine_cfg``.

    Raises:
        ValueError: an unknown ``renorm_type``.
    """
    with np.errstate(all="ignore"):
        return combine(gen, text, img, text_scale, img_scale, renorm_type, renorm_min, Float64Combine())


def combine_bound(
    gen: Float64[np.ndarray, "tokens channels"],
    text: Float64[np.ndarray, "tokens channels"],
    img: Float64[np.ndarray, "tokens channels"] | None,
    text_scale: float,
    img_scale: float,
    renorm_type: str,
    renorm_min: float,
    dtype: str,
    *,
    failure_probability: float = 0.0,
) -> Float64[np.ndarray, "tokens channels"]:
    """What ``combine_cfg`` may differ from :func:`combine_oracle` by, for each element.

    Args:
        gen: velocity with full conditioning: the numbers that the tensor holds, as float64.
        text: velocity with the text dropped, likewise.
        img: velocity with the image dropped, likewise, or None.
        text_scale: any float.
        img_scale: any float; unused when ``img`` is None.
        renorm_type: ``global``, ``channel`` or ``text_channel``.
        renorm_min: from 0 to 1.
        dtype: of the tensors: bfloat16, float16, float32 or float64.
        failure_probability: 0, or what :class:`CombineBound` takes. Over many elements the bound on any order of
            summation is far off in float32 and float64 (medians over 262,144 float32 elements under one norm: 188,000
            units in the last place against 5 to 14 observed); at 1e-9 this one allows 2,500.

    Raises:
        ValueError: an unknown ``renorm_type`` or ``dtype``.
    """
    arithmetic = CombineBound(format_of(dtype), failure_probability)
    g, t = Ball.exactly(gen), Ball.exactly(text)
    i = None if img is None else Ball.exactly(img)
    with np.errstate(all="ignore"):
        found = combine(g, t, i, text_scale, img_scale, renorm_type, renorm_min, arithmetic)
        bound: Array = found.error * (1 + (_OPERATIONS + gen.size) * 2 * FLOAT64.unit)
        return bound


def within(observed: Array, expected: Array, bound: Array) -> Mask:
    """Whether each observed element keeps what ``bound`` says about it."""
    with np.errstate(all="ignore"):
        near = np.abs(observed - expected) <= bound
    same_kind = (observed == expected) | (np.isnan(observed) & np.isnan(expected))
    kept: Mask = np.isinf(bound) | np.where(np.isfinite(expected), near, same_kind)
    return kept


def ulps(difference: Array, expected: Array, dtype: str) -> Array:
    """``difference`` in units of the last place that ``expected`` has in ``dtype``; NaN where that is not finite."""
    form = format_of(dtype)
    with np.errstate(all="ignore"):
        # For 2^e <= |x| < 2^(e+1) the unit is 2^e * 2u; below the normal range it is the least subnormal.
        unit = np.ldexp(2 * form.unit, np.frexp(np.abs(expected))[1] - 1)
        unit = np.where(expected == 0, form.least, np.maximum(unit, form.least))
        in_units: Array = np.where(np.isfinite(expected), difference / unit, np.nan)
        return in_units


def ulps_of_shape(
    count: int, dtype: str, element: Array | float, group: Array | float, *, with_img: bool, renorm_type: str
) -> Array | float:
    """How many units in the last place the combine errs by at most, from shape, dtype and cancellation alone.

    To first order, where nothing over- or underflows. With ``r`` the error of an elementwise operation, ``s`` that of a
    scale, ``c`` the unit roundoff of sums, ``u`` that of the dtype and ``A`` the amplification, relative errors are::

        r        = u + c where PyTorch computes bfloat16 or float16 in float32, else u;   s = c, but 0 for float64
        guidance = r + (2r + s) A                      by the image: r + (2r + s) A + A * (that of the text guidance)
        factor   = 2 (count c/2 + r) + guidance + u + 2r     two norms, the guided vector's error, 1e-8, sum, quotient
        result   = guidance + factor + r

    ``text_channel`` takes the factor before the image guidance. A unit in the last place is at least one unit roundoff.

    Args:
        count: elements under one norm: all of them for ``global``, otherwise the channels.
        dtype: of the velocities.
        element: A of the element: in each guidance from x to y by scale k with result g, the larger of
            ``k|y - x| / |g|`` and, by the image, ``k|y| / |g|``. It grows where g cancels.
        group: the same ratios of the norms, taken over what is under one norm.
        with_img: whether there is an image branch.
        renorm_type: ``global``, ``channel`` or ``text_channel``.
    """
    form = format_of(dtype)
    c, u = form.compute.unit, form.unit
    r = u if form.compute is form else u + c
    per_apart = 2 * r + (0.0 if form is FLOAT64 else c)

    def guidance(a: Array | float, carried: Array | float | None = None) -> Array | float:
        return r + per_apart * a + (0.0 if carried is None else a * carried)

    in_element, in_group = guidance(element), guidance(group)
    late = renorm_type != "text_channel"
    if with_img and late:
        in_element, in_group = guidance(element, in_element), guidance(group, in_group)
    result = in_element + 2 * (count * c / 2 + r) + in_group + u + 2 * r + r
    if with_img and not late:
        result = guidance(element, result)
    return result / u
