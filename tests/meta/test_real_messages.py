"""The whole report of real failures, as a user reads it; what no two machines share is left out.

``PYTHONPATH=. python tests/meta/test_real_messages.py`` writes the texts anew.
"""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from verify.faults import FAULTS
from verify.faults.runner import job_of
from verify.report.console import print_presentation
from verify.report.sections.run import present_run
from verify.runner.job import Job
from verify.runner.run import run_job

pytestmark = pytest.mark.nightly

MESSAGES = Path(__file__).with_name("real_messages")
NAMES = (
    *("one_ulp_middle_step", "sign_of_zero", "nan_payload", "initial_broadcast_missing", "weight_changed"),
    *("gathered_slot_corrupted", "scale_lost_on_every_rank", "one_step_too_many", "bound_rule_differs"),
    *("broadcast_added", "gather_in_another_dtype", "parallelism_ignored", "cache_updated_while_denoising"),
    *("shows_another_x_t", "threads_on_one_rank", "rank_local_skip", "branch_inputs_missing"),
)
# Bits, distances and counts depend on the processor; stacks, on the versions of Python and torch.
_VARIES = (
    (re.compile(r"^(  \S.*?)  0x[0-9a-f]+  \S+$", re.M), r"\1  BITS  VALUE"),
    (re.compile(r"index \[[\d, ]+\]"), "index [...]"),
    (re.compile(r"\d+ ULP"), "N ULP"),
    (re.compile(r"\d+ of (\d+) elements"), r"N of \1 elements"),
    (re.compile(r"\d+(\.\d+)? s\b"), "N s"),
    (re.compile(r"(Current thread|Thread) 0x[0-9a-f]+"), r"Thread N"),
    (re.compile(r"(^    +(File|\^|~|\.\.\. \d+ lines).*\n( {6,}\S.*\n)*)+", re.M), "    (stack)\n"),
)


def told(name: str) -> str:
    """The report on a fault."""
    job = job_of(FAULTS[name], Job(), 2)
    report = run_job(replace(job, timeout=60.0) if FAULTS[name].hangs else job)
    file = io.StringIO()
    print_presentation(present_run(report.document), Console(file=file, width=120, force_terminal=False, _environ={}))
    text = "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"
    for pattern, instead in _VARIES:
        text = pattern.sub(instead, text)
    return text


@pytest.mark.parametrize("name", NAMES)
def test_whole_report(name: str) -> None:
    assert told(name) == (MESSAGES / f"{name}.txt").read_text(encoding="utf-8")


def test_every_report_is_compared() -> None:
    assert {path.stem for path in MESSAGES.glob("*.txt")} == set(NAMES)


if __name__ == "__main__":
    for name in NAMES:
        (MESSAGES / f"{name}.txt").write_text(told(name), encoding="utf-8")
