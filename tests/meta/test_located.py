"""Where a fault is said to be: the tensor, the operator, the module; on two ranks and three, in either loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from verify.faults import FAULTS
from verify.faults.runner import job_of
from verify.runner.job import Job
from verify.runner.run import run_job

BROADCAST_FAULTS = Path(__file__).with_name("broadcast_faults.py")
# Fault, tensor, operator, module, layer.
IN_THE_NETWORK = [
    ("weight_changed", "velocity of text", "aten::mm", "layers.1.gen.mlp.down_proj", 1),
    ("gemm_split_differently", "velocity of text", "aten::addmm", "layers.0.gen.self_attn.q_proj", 0),
    ("gemm_in_reduced_precision", "velocity of text", "aten::_to_copy", "layers.1.gen.mlp.up_proj", 1),
    ("kv_row_swapped", "velocity of gen", "aten::cat", "layers.1", 1),
]
AROUND_IT = [
    ("velocity_one_ulp_off_at_its_owner", "velocity of text as sent into all_gather"),
    ("gathered_slot_corrupted", "gathered slot 1 (text)"),
    ("gathered_slot_stale", "gathered slot 0 (gen)"),
    ("gather_buffer_reused", "gathered slot 0 (gen), which holds the velocity of text"),
    ("combine_skipped", "combined velocity"),
    ("scale_lost_on_one_rank", "combined velocity"),
    ("combine_in_another_dtype", "combined velocity"),
    ("schedule_differs_on_one_rank", "step size"),
    ("one_ulp_middle_step", "x_t"),
]


def located(job: Job) -> dict[str, Any]:
    """What ``matches_reference`` says of the place."""
    (found,) = [f for f in run_job(job).findings if f.name == "matches_reference"]
    location: dict[str, Any] = found.data["location"]
    said = f"located: the first tensor that differs in step {location['step']} is {location['tensor']}, on rank"
    assert found.details[0].startswith(said)
    return location


@pytest.mark.parametrize(("name", "tensor", "operator", "module", "layer"), IN_THE_NETWORK)
@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.nightly)])
def test_a_fault_inside_the_network(name: str, tensor: str, operator: str, module: str, layer: int, ranks: int) -> None:
    found = located(job_of(FAULTS[name], Job(), ranks))
    assert (found["operator"], found["module"], found["layer"]) == (operator, module, layer)
    assert (found["tensor"], found["rank"], found["step"]) == (tensor, FAULTS[name].rank, FAULTS[name].step)


@pytest.mark.nightly
@pytest.mark.parametrize(("name", "tensor"), AROUND_IT)
@pytest.mark.parametrize("ranks", [2, 3])
def test_a_fault_around_the_network(name: str, tensor: str, ranks: int) -> None:
    found = located(job_of(FAULTS[name], Job(), ranks))
    assert (found["tensor"], found["module"]) == (tensor, "")
    assert found["step"] == FAULTS[name].step
    assert FAULTS[name].rank in (None, found["rank"])


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("name", "rank", "step", "tensor", "module"),
    [
        ("weight_changed", 1, 0, "velocity of text", "layers.1.gen.mlp.down_proj"),
        ("gemm_in_reduced_precision", 1, 0, "velocity of text", "layers.1.gen.mlp.up_proj"),
        ("kv_row_swapped", 0, 0, "velocity of gen", "layers.1"),
        ("gathered_slot_corrupted", 0, 11, "gathered slot 1 (text)", ""),
        ("one_ulp_middle_step", 1, 20, "x_t", ""),
    ],
)
@pytest.mark.parametrize("image", [False, True])
def test_a_fault_in_the_broadcast_loop(name: str, rank: int, step: int, tensor: str, module: str, image: bool) -> None:
    request = job_of(FAULTS[name], Job(), 3 if image else 2).request
    found = located(Job(request, loop_reference=f"{BROADCAST_FAULTS}:{name}", loops=(), expect="broadcast"))
    assert (found["rank"], found["step"], found["tensor"], found["module"]) == (rank, step, tensor, module)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("name", "tensor", "module"),
    [
        ("kv_leaked_into_img_branch", "velocity of img", ""),
        ("img_velocity_one_ulp_off_at_its_owner", "velocity of img as sent into all_gather", ""),
        ("gathered_img_slot_lost", "gathered slot 2 (img)", ""),
        ("third_branch_dropped", "combined velocity", ""),
    ],
)
def test_a_fault_of_image_guidance(name: str, tensor: str, module: str) -> None:
    found = located(job_of(FAULTS[name], Job(), 3))
    assert (found["tensor"], found["module"]) == (tensor, module)
    assert FAULTS[name].rank in (None, found["rank"])
