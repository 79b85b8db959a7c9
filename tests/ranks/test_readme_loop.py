"""The README's loop of your own passes as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from verify.request import DenoiseRequest
from verify.runner.job import Job
from verify.runner.run import run_job
from verify.verdict import Verdict

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.parametrize("guidance", [{}, {"cfg_img_scale": 1.5}], ids=["text", "text and image"])
def test_it_passes(tmp_path: Path, guidance: dict[str, float]) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), re.M | re.S)
    path = tmp_path / "my_loop.py"
    path.write_text(block)
    request = DenoiseRequest(num_timesteps=8, **guidance)  # type: ignore[arg-type]
    report = run_job(Job(request=request, loops=(), loop_reference=f"{path}:loop", requests="one"))
    assert {finding.name: str(finding.verdict) for finding in report.findings if finding.verdict != "pass"} == {}
    assert report.verdict is Verdict.PASS
