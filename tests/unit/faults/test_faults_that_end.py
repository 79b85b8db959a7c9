"""A fault that hangs over gloo may end over NCCL: what the check that must then fail finds, and where."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from in_threads import LinearDenoiser, Notes, on_every_rank

from verify.checks.collectives import collectives
from verify.expected import expected_work
from verify.faults import FAULTS, endings, runner
from verify.protocols import Group
from verify.request import DenoiseRequest
from verify.runner.job import Job
from verify.runner.one_request import blank_report
from verify.trace.caches import CacheWatch
from verify.trace.recorder import Recorder
from verify.trace.trace import Trace
from verify.verdict import Verdict

NAME = "broadcast_in_another_dtype"


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_broadcast_in_another_dtype_that_completes(ranks: int) -> None:
    """Threads exchange what they are given, whatever its size; so does NCCL."""
    request = DenoiseRequest() if ranks == 2 else DenoiseRequest(cfg_img_scale=1.5, cfg_renorm_type="text_channel")

    def run(group: Group) -> Trace:
        denoiser, x_0 = LinearDenoiser(request.branches), torch.zeros(4, 2)
        recorder = Recorder(denoiser, group, x_0, request, CacheWatch({}), Notes())
        final, _ = recorder.run(lambda d, g, o: endings.broadcast_in_another_dtype(d, request, x_0, g, o))
        return recorder.trace(NAME, final, 0.0, {})

    traces = on_every_rank(ranks, run)
    found = collectives(traces, expected_work("broadcast", request.schedule, request.branches, ranks))
    assert found.summary == (
        "in step 8 rank 0 called broadcast of float64 (4, 2) from rank 0 where rank 1 called broadcast of float32 "
        "(4, 2) from rank 0"
    )
    row = runner.judged(FAULTS[NAME], replace(blank_report(Job()), verdict=Verdict.FAIL, findings=(found,)), 1.0).row
    assert (row.caught, row.placed, row.step, row.rank) == (True, True, 8, 1)
