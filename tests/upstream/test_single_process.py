"""Upstream's loop in one process against the sequential loop. Reported, not gated: batched products have other bits.

``pytest tests/upstream/test_single_process.py -rP`` prints the distances.
"""

from __future__ import annotations

import numpy as np
import pytest
import upstream_tasks
from expected import Facts

from verify.bits import same_bits, ulp_distance
from verify.ranks.plan import place
from verify.request import DenoiseRequest
from verify.runner.run import pool_for
from verify.schedule import Schedule


@pytest.mark.parametrize("image", [False, True], ids=["text", "text and image"])
def test_distance_of_the_joint_forward(facts: Facts, image: bool) -> None:
    request = DenoiseRequest(num_timesteps=10, cfg_img_scale=1.5 if image else 1.0)
    schedule = Schedule.of(request.num_timesteps + facts.extra_points, request.timestep_shift, request.cfg_interval)
    pool = pool_for(place(1, "cpu").spec)
    joint, in_turn = pool.run(upstream_tasks.single_process, request, schedule, timeout=300.0)[0]
    apart = ulp_distance(joint, in_turn)
    greatest = (joint - in_turn).abs().max().item()
    print(
        f"{facts.joint} forward, {'3' if image else '2'} branches, final x_t: "
        f"{'equal in every byte' if same_bits(joint, in_turn) else 'not equal'}, greatest difference {greatest:.3g}, "
        f"float32 ULP: median {np.median(apart.compressed()):.0f}, most {apart.max()}"
    )
    assert apart.count() == joint.numel()
    assert joint.shape == in_turn.shape
    if facts.joint == "sequential":
        assert same_bits(joint, in_turn)
