"""What is known of the versions: read in their source, and seen in runs. The suite itself knows none of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Facts:
    """One version.

    Attributes:
        extra_points: how many points more than ``num_timesteps`` its schedule has (vllm-omni issue 4470: 1).
        bound_in_float32: whether the interval's bound is compared as a float32 tensor; otherwise as a host float.
        joint: how its single-process loop runs the branches.
    """

    extra_points: int
    bound_in_float32: bool
    joint: str


EXPECTED = {
    "0.18.0": Facts(extra_points=0, bound_in_float32=True, joint="batched"),
    "0.22.0": Facts(extra_points=1, bound_in_float32=False, joint="sequential"),
    "0.30.0": Facts(extra_points=0, bound_in_float32=False, joint="batched"),
}
