"""The built-in target's loops over CUDA graphs on a real GPU: the bits of eager loops, and every check passes."""

from __future__ import annotations

import pytest

from verify import run
from verify.request import DenoiseRequest
from verify.runner.run_report import RunReport
from verify.verdict import Verdict

pytestmark = [pytest.mark.gpu, pytest.mark.gate]
REPLAYED = "forward passes are replayed from CUDA graphs, whose bits were compared with eager ones"


def judged(cuda_graph: bool | None, **job: object) -> RunReport:
    report = run(DenoiseRequest(num_timesteps=8, cfg_img_scale=1.5), device="cuda", cuda_graph=cuda_graph, **job)
    assert report.verdict is Verdict.PASS, [f.summary for f in report.findings if f.verdict is not Verdict.PASS]
    return report


def test_loops_pass_over_graphs() -> None:
    report = judged(cuda_graph=True)
    assert REPLAYED in report.notes


def test_a_small_network_runs_eagerly_unless_asked() -> None:
    assert not any("CUDA graph" in note for note in judged(cuda_graph=None).notes)


def test_the_picture_is_the_same_with_and_without_graphs(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Equal final latents, seen through the file that is drawn of them."""
    folder = tmp_path_factory.mktemp("pictures")
    drawn = [judged(cuda_graph, image=str(folder / f"{cuda_graph}.png")).picture for cuda_graph in (True, False)]
    assert drawn[0] is not None and drawn[1] is not None
    assert drawn[0]["sha256"] == drawn[1]["sha256"]
