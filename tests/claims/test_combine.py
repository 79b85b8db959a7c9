"""The claim under all others: ``combine_cfg`` gives every rank the same bits, and they are the right ones.

Each test is one property, judged on the cases of a profile; a profile runs once in a session. ``pytest -m nightly -k
combine`` runs the long one. A failure prints the command that replays the simplest case that shows it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from verify.fuzz.boundary import GUIDED_STEPS_AGREE
from verify.fuzz.engine import property_names
from verify.fuzz.session import FuzzJob, run_fuzz
from verify.fuzz.tasks import CUDA_GRAPH, STREAM
from verify.report.documents.fuzz import Fuzz
from verify.report.message import failure_text, rank_failure_text
from verify.verdict import Verdict

PROPERTIES = [*property_names("cuda"), GUIDED_STEPS_AGREE]
FuzzProfile = Callable[[str], Fuzz]


@pytest.fixture(scope="module")
def fuzz_profile(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FuzzProfile:
    """The report of a profile, where the options say."""
    option = request.config.option
    reports: dict[str, Fuzz] = {}
    # Kept after the session, as pytest keeps its temporary folders: the replay command names a file in it.
    folder = Path(tmp_path_factory.mktemp("fuzz-failures"))

    def report(profile: str) -> Fuzz:
        if profile not in reports:
            job = FuzzJob(profile, device=option.device, backend=option.backend, save=folder)
            reports[profile] = run_fuzz(job)
        return reports[profile]

    return report


def assert_holds(found: Fuzz, name: str) -> None:
    __tracebackhide__ = True
    if name in (STREAM, CUDA_GRAPH) and found.device == "cpu":
        pytest.skip("a CPU has neither streams nor graphs: --device cuda judges this property")
    if found.failure is not None:
        pytest.fail(rank_failure_text(found.failure, found.command), pytrace=False)
    if not found.properties:
        pytest.fail("nothing was judged: " + "; ".join(found.notes), pytrace=False)
    (check,) = [check for check in found.properties if check.name == name]
    if check.verdict is not Verdict.PASS:
        pytest.fail(failure_text(check, found.replays.get(name, found.command)), pytrace=False)
    assert check.compared.elements


@pytest.mark.gate
@pytest.mark.parametrize("name", PROPERTIES)
def test_combine(fuzz_profile: FuzzProfile, name: str) -> None:
    assert_holds(fuzz_profile("fast"), name)


@pytest.mark.nightly
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("name", PROPERTIES)
def test_combine_nightly(request: pytest.FixtureRequest, fuzz_profile: FuzzProfile, name: str) -> None:
    if "nightly" not in (request.config.option.markexpr or ""):
        pytest.skip("tens of thousands of cases: run with -m nightly")
    report = fuzz_profile("nightly")
    assert report.failure is not None or report.cases >= 20_000
    assert_holds(report, name)
