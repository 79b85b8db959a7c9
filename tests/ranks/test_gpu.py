"""Real GPUs. Two ranks need one GPU each for NCCL, and share one over gloo."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from verify.bagel.config import preset
from verify.bagel.weights import build_model
from verify.bits import same_bits
from verify.ranks.plan import place
from verify.ranks.rank import Rank
from verify.request import DenoiseRequest
from verify.runner.job import Job
from verify.runner.run import pool_for, run_job
from verify.runner.run_report import RunReport
from verify.targets.protocol import REFERENCE, ModelOptions
from verify.tasks.stage import Plan
from verify.tasks.trace_loop import trace_loop
from verify.verdict import Verdict

pytestmark = [pytest.mark.gpu, pytest.mark.gate]

LOOPS = Path(__file__).parents[1] / "meta" / "broken_loops.py"
CUDA = Job(options=ModelOptions(autocast=True), device="cuda")


def passed(report: RunReport) -> None:
    assert report.failure is None, report.failure
    assert {(f.loop, f.name): f.summary for f in report.findings if f.verdict is not Verdict.PASS} == {}
    assert report.verdict is Verdict.PASS, report.notes


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("renorm", ["global", "channel", "text_channel"])
def test_text_guidance(renorm: str, autocast: bool) -> None:
    request = DenoiseRequest(cfg_renorm_type=renorm)  # type: ignore[arg-type]
    passed(run_job(replace(CUDA, request=request, options=ModelOptions(autocast=autocast))))


def test_image_guidance_on_three_ranks() -> None:
    passed(run_job(replace(CUDA, request=DenoiseRequest(cfg_img_scale=1.5, cfg_renorm_type="text_channel"))))


def test_three_branches_on_two_ranks() -> None:
    request = DenoiseRequest(cfg_img_scale=1.5)
    passed(run_job(replace(CUDA, request=request, loops=("round_robin",), world_size=2)))


@pytest.mark.gpu(count=2)
def test_two_ranks_over_nccl() -> None:
    report = run_job(replace(CUDA, backend="nccl"))
    passed(report)
    assert report.backend == "nccl"


def test_ranks_that_share_a_gpu_say_so() -> None:
    world_size = torch.cuda.device_count() + 1
    report = run_job(replace(CUDA, loops=("round_robin",), world_size=world_size))
    passed(report)
    assert report.backend == "gloo"
    assert "share" in report.notes[0]


def test_one_bit_is_seen_and_placed() -> None:
    report = run_job(replace(CUDA, loops=(), loop_reference=f"{LOOPS}:one_bit"))
    found = {f.name: f.first_divergence for f in report.findings if f.verdict is Verdict.FAIL}
    assert set(found) == {"ranks_agree", "matches_reference"}
    first = found["ranks_agree"]
    assert first is not None
    assert first.difference is not None
    assert (first.step, first.ranks, first.difference.index, first.difference.ulp) == (7, (0, 1), (3, 5), 1)


def test_a_dead_rank_is_reported() -> None:
    report = run_job(replace(CUDA, loops=(), loop_reference=f"{LOOPS}:exits_on_rank_1", timeout=120.0))
    assert report.verdict is Verdict.UNKNOWN
    assert report.failure is not None
    assert report.failure["ranks"][0]["what"] == "exited with status 7"


def test_weights_have_equal_bits_on_cpu_and_gpu() -> None:
    config = preset("tiny").config
    models = [build_model(config, torch.bfloat16, torch.device(device), 7) for device in ("cpu", "cuda")]
    for (name, on_cpu), (_, on_gpu) in zip(*(model.named_parameters() for model in models), strict=True):
        assert same_bits(on_cpu, on_gpu.cpu()), name


def trace_without_syncs(rank: Rank, plan: Plan) -> int:
    """Traces the reference loop; any operation that makes the host wait for the device raises."""
    trace_loop(rank, plan)  # Compiles and plans what the first run of each kernel does.
    before = rank.status.finished

    def armed(step: int) -> None:
        # From the first step to the one before the last: what precedes and follows the loop may wait.
        torch.cuda.set_sync_debug_mode("error" if step < plan.request.schedule.steps - 1 else "default")
        before(step)

    rank.status.finished = armed  # type: ignore[method-assign]
    try:
        trace = trace_loop(rank, plan)
    finally:
        torch.cuda.set_sync_debug_mode("default")
        rank.status.finished = before  # type: ignore[method-assign]
    return 0 if trace is None else trace.steps


def test_recording_makes_no_host_wait_inside_the_loop() -> None:
    plan = Plan(DenoiseRequest(), ModelOptions(autocast=True), loop=REFERENCE)
    results = pool_for(place(1, "cuda").spec).run(trace_without_syncs, plan)
    assert results == [49]
