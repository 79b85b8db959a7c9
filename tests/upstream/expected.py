"""What is known of the releases: read in their source, and seen in runs. The suite itself knows none of it."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Facts:
    """One release.

    Attributes:
        extra_points: how many points more than ``num_timesteps`` its schedule has (vllm-omni issue 4470: 1).
        bound_in_float32: whether the interval's bound is compared as a float32 tensor; otherwise as a host float.
        joint: how its single-process loop runs the branches; empty where nobody has looked.
    """

    extra_points: int
    bound_in_float32: bool
    joint: str


_JOINT = {"0.18.0": "batched", "0.22.0": "sequential", "0.30.0": "batched"}
_HOST_FLOATS_SINCE = (0, 22)
_EXTRA_POINT = (0, 22)


def facts_of(release: str) -> Facts:
    """What is expected of a release; of one that nobody has met, that it is as the ones before it."""
    number = tuple(map(int, re.findall(r"\d+", release)))[:2]
    return Facts(
        extra_points=int(number == _EXTRA_POINT),
        bound_in_float32=number < _HOST_FLOATS_SINCE,
        joint=_JOINT.get(release, ""),
    )
