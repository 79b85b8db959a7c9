"""The core knows no Bagel: its name is in no module that other targets' reports are made with."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from verify.request import DenoiseRequest
from verify.runner.job import Job
from verify.runner.run import run_job

ROOT = Path(__file__).parents[2]
CORE = (
    "verify/bits.py",
    "verify/checks",
    "verify/environment",
    "verify/errors.py",
    "verify/expected.py",
    "verify/layout.py",
    "verify/protocols.py",
    "verify/ranks",
    "verify/report",
    "verify/tasks",
    "verify/trace",
    "verify/verdict.py",
)
BAGEL = re.compile("bagel", re.IGNORECASE)


@pytest.mark.parametrize("part", CORE)
def test_no_module_of_the_core_names_bagel(part: str) -> None:
    path = ROOT / part
    files = [path] if path.suffix else sorted(path.rglob("*.py"))
    assert files
    named = {
        f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
        for file in files
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if BAGEL.search(line)
    }
    assert named == set()


@pytest.mark.parametrize("target", ["reducing_target.py:ReducingTarget", "reducing_target.py:WeightOff"])
def test_no_report_on_another_target_names_bagel(target: str) -> None:
    job = Job(target=f"{ROOT / 'tests/examples'}/{target}", request=DenoiseRequest(num_timesteps=5), requests="one")
    report = run_job(job)
    told = report.text() + report.to_html() + msgspec.json.encode(report.document).decode()
    # The checkout, and with it paths, may be called as it likes.
    told = told.replace(str(ROOT), "")
    assert [line for line in told.splitlines() if BAGEL.search(line)] == []
