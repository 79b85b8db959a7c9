"""The schedule, stated twice: in float32 operation by operation, and in float64.

The float32 statement is meant to equal PyTorch's bits; NumPy rounds every float32 operation to nearest, and so do the
elementwise operations of PyTorch. The float64 statement says what the float32 points approximate, and how well.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64

from verify.oracle.formats import FLOAT32


@dataclass(frozen=True, eq=False)
class Schedule:
    """Where the Euler steps lie.

    Attributes:
        points: all shifted points from 1 to 0, one more than there are steps.
        timesteps: the points that start a step.
        dts: the step sizes.
        guided: the steps with ``lo < t <= hi``, the bounds rounded to float32.
        exact_points: the points in float64.
        points_error: what ``points`` can differ from ``exact_points`` by, to first order in float32's unit roundoff.
    """

    points: Float32[np.ndarray, " points"]
    timesteps: Float32[np.ndarray, " steps"]
    dts: Float32[np.ndarray, " steps"]
    guided: Bool[np.ndarray, " steps"]
    exact_points: Float64[np.ndarray, " points"]
    points_error: Float64[np.ndarray, " points"]


def schedule(num_timesteps: int, shift: float, interval: tuple[float, float], *, fused: bool = True) -> Schedule:
    """The schedule of ``num_timesteps`` points (at least 2), shifted by ``s*t / (1 + (s-1)*t)``.

    The line is filled from both ends, as ``torch.linspace`` does: the first half goes down from 1, one multiply-add a
    point, the second half goes up from 0. Only this gives PyTorch's rounding errors.

    Args:
        num_timesteps: points on [1, 0]; there is one step fewer.
        shift: s.
        interval: ``(lo, hi)``.
        fused: whether the multiply-add rounds once, as PyTorch's does with AVX2, AVX-512 or a GPU. Its fallback for a
            CPU without them rounds twice, and then some points differ in their last bit.
    """
    one = np.float32(1)
    spacing = -one / np.float32(num_timesteps - 1)
    index = np.arange(num_timesteps)
    if fused:
        # A float64 holds this product and sum of float32 numbers exactly (they span 10 + 24 + 10 bits), so the one
        # rounding to float32 is that of a fused multiply-add.
        from_start = (1 + np.float64(spacing) * index).astype(np.float32)
    else:
        from_start = one + spacing * index.astype(np.float32)
    from_end = -spacing * (num_timesteps - 1 - index).astype(np.float32)
    line = np.where(index < num_timesteps // 2, from_start, from_end)
    # Constants are formed in double precision, then rounded: that is what a Python float does to a float32 tensor.
    points = np.float32(shift) * line / (one + np.float32(shift - 1) * line)
    starts = points[:-1]
    lo, hi = (np.float32(bound) for bound in interval)
    exact_line = 1 - index / (num_timesteps - 1)
    return Schedule(
        points=points,
        timesteps=starts,
        dts=starts - points[1:],
        guided=(starts > lo) & (starts <= hi),
        exact_points=shift * exact_line / (1 + (shift - 1) * exact_line),
        points_error=_points_error(exact_line, shift),
    )


def _points_error(line: Float64[np.ndarray, " points"], shift: float) -> Float64[np.ndarray, " points"]:
    """One rounding for the spacing, two for the multiply-add, then each operation of the shift."""
    from_start, from_end = 2 * (1 - line) + line, 2 * line
    line_error = np.maximum(from_start, from_end)
    denominator = 1 + (shift - 1) * line
    points = shift * line / denominator
    # s and s*t round once each, and so does the quotient; s-1 and (s-1)*t likewise, then their sum with 1.
    operations = 3 * points + points * (2 * abs(shift - 1) * line / denominator + 1)
    error: Float64[np.ndarray, " points"] = FLOAT32.unit * (shift / denominator**2 * line_error + operations)
    return error
