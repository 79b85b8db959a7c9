"""Injected bugs: caught by the right check, at the right step, on the right rank; in both modes of the reference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from verify.faults import FAULTS, Fault
from verify.faults.registry import Wiring, fault
from verify.faults.runner import job_of, run_fault
from verify.job import INDUCTIVE, Job
from verify.runner import run_job
from verify.verdict import Verdict

TWO_FAULTS = Path(__file__).with_name("two_faults.py")
ENDING = [f for f in FAULTS.values() if f.caught_by != "unknown" and not f.hangs and f.requests == 1]
# The whole catalogue on two and three ranks is ``verify faults``, which the nightly run calls.
# Reports of the public list; vo, sg, pt and others as in the catalogue.
REPORTS = (
    "4470",
    "4659",
    "2371",
    "6180",
    "4882",
    "4081",
    "3646",
    "1578",
    "35054",
    "23736",
    "18975",
    "3956",
    "1729",
    "3728",
    "3382",
    "6359 (review)",
    "192920",
    "35343",
    "4454",
    "155558",
    "53000",
    "57458",
    "26923",
    "17670",
    "11056",
    "279",
    "158903",
    "1497",
    "0.18 to 0.30",
)
GATE = (
    "one_ulp_unguided_step",
    "gathered_slot_stale",
    "gathered_in_wrong_order",
    "kv_row_swapped",
    "weight_changed",
    "gemm_split_differently",
    "rank_local_skip",
    "state_survives_request",
    "mixed_gpu_models",
)


def test_every_row_of_the_public_list_has_a_fault_or_a_reason() -> None:
    sources = " ".join(f.source for f in FAULTS.values())
    for report in REPORTS:
        assert report in sources, report
    assert len(FAULTS) >= 35


@pytest.mark.parametrize("name", GATE)
def test_a_fault_is_caught_and_placed(name: str) -> None:
    row = run_fault(FAULTS[name], Job(), 2)
    assert (row.caught, row.placed) == (True, True), row


@pytest.mark.parametrize(
    ("name", "operator", "module", "layer"),
    [
        ("weight_changed", "aten::mm", "layers.1.gen.mlp.down_proj", 1),
        ("gemm_split_differently", "aten::addmm", "layers.0.gen.self_attn.q_proj", 0),
        ("gemm_in_reduced_precision", "aten::_to_copy", "layers.1.gen.mlp.up_proj", 1),
        ("kv_row_swapped", "aten::cat", "layers.1", 1),
    ],
)
def test_a_fault_inside_the_network_is_placed_in_its_module(name: str, operator: str, module: str, layer: int) -> None:
    report = run_job(job_of(FAULTS[name], Job(), 2))
    (found,) = [f for f in report.findings if f.name == "matches_reference"]
    location = found.data["location"]
    assert (location["operator"], location["module"], location["layer"]) == (operator, module, layer)
    assert location["rank"] == FAULTS[name].rank


@pytest.mark.nightly
@pytest.mark.parametrize("one", ENDING, ids=lambda f: f.name)
def test_full_and_inductive_modes_agree(one: Fault) -> None:
    job = job_of(one, Job(), 2)
    places = []
    for mode in (job, replace(job, reference=INDUCTIVE)):
        report = run_job(mode)
        (found,) = [f for f in report.findings if f.name == "matches_reference"]
        places.append((found.verdict, found.first_divergence and found.first_divergence.step))
    assert places[0] == places[1]


def test_independent_faults_are_all_told() -> None:
    report = run_job(Job(loop_reference=f"{TWO_FAULTS}:twice", reference=INDUCTIVE))
    (found,) = [f for f in report.findings if f.name == "matches_reference"]
    assert found.data["wrong_steps"] == [[7, 1], [30, 0]]
    assert found.details[-1] == "also wrong by itself: step 30 on rank 0"


def test_a_clean_run_passes_inductively() -> None:
    report = run_job(Job(reference=INDUCTIVE))
    assert {f.name: f.summary for f in report.findings if f.verdict is not Verdict.PASS} == {}


def test_a_fault_is_written_in_ten_lines() -> None:
    @fault(source="engine issue 123", breaks="loop", step=5, rank=0, caught_by="ranks_agree")
    def doubled(wiring: Wiring) -> None:
        """Rank 0 doubles x_t once."""
        wiring.after_step(lambda step, x_t: x_t * 2 if (step, wiring.rank) == (5, 0) else x_t)

    registered = FAULTS.pop("doubled")
    assert callable(doubled)
    assert (registered.summary, registered.step, registered.rank) == ("Rank 0 doubles x_t once.", 5, 0)
    assert registered.loop_reference == f"{__name__}:doubled"
