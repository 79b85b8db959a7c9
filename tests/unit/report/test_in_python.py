"""What Python shows of the package and of a report, and that a function is a loop."""

from __future__ import annotations

import importlib
import pydoc
import re
from pathlib import Path

import pytest
from example_reports import EXAMPLES

import verify
from verify.runner.job import Job
from verify.runner.run import job_for
from verify.targets.loading import load_loop, reference_to

ROOT = Path(__file__).parents[3]
SCREEN = 40  # Lines.


def my_loop(denoiser, request, x_0, group, observe):  # type: ignore[no-untyped-def]
    """A loop as the help has it."""


def test_help_begins_with_an_example_and_names_run_report_and_target() -> None:
    text = pydoc.plain(pydoc.render_doc(verify))
    head = text[: text.index("PACKAGE CONTENTS")]
    for word in (
        "def my_loop(denoiser, request, x_0, group, observe)",
        "verify.run(",
        "Report",
        "Target",
        "verify help",
    ):
        assert word in head
    assert set(verify.__all__) <= set(dir(verify))
    assert re.search(r"^    run\(request: .*\) -> .*Report", text, re.M)
    assert re.search(r"^    class Target\(", text, re.M)


@pytest.mark.parametrize("name", verify.__all__)
def test_every_name_is_there_when_it_is_asked_for(name: str) -> None:
    assert getattr(verify, name) is not None


@pytest.mark.parametrize("example", EXAMPLES)
def test_a_report_prints_itself_in_one_screen(example: str) -> None:
    report = EXAMPLES[example]()
    assert str(report) == report.text()
    assert str(report.verdict) in report.text().lower()
    assert len(report.text().splitlines()) <= SCREEN
    assert len(repr(report)) < 160 and str(report.verdict) in repr(report)


def test_a_function_is_a_loop() -> None:
    job = job_for(Job(), loop=my_loop)
    assert job.loop_reference == reference_to(my_loop)
    found = load_loop(str(job.loop_reference))
    assert found.__doc__ == my_loop.__doc__ and found.__name__ == "my_loop"


def test_the_pages_of_the_api_show_what_there_is() -> None:
    shown = re.findall(r"^::: (\S+)$", (ROOT / "docs" / "api.md").read_text(), re.M)
    assert {f"verify.{name}" for name in verify.__all__} <= set(shown)
    for name in shown:
        module, _, last = name.rpartition(".")
        assert hasattr(importlib.import_module(module), last), name
