"""The pytest side: options that name what is under test, a header that says on what, and GPU tests that cannot hide."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch

from verify.bagel.config import preset
from verify.environment.variables import bit_variables
from verify.errors import BadInput
from verify.gate import findings as pytest_findings
from verify.ranks.local.forkserver import close_fork_server, fork_server
from verify.report.document import RunReport
from verify.report.message import failure_text, rank_failure_text
from verify.request import DenoiseRequest
from verify.runner.job import DEFAULT_TIMEOUT, Job
from verify.runner.run import run_job
from verify.targets.finding import find_target
from verify.targets.protocol import REFERENCE, ModelOptions, default_loops, understood
from verify.verdict import Finding, Verdict

IMAGE_GUIDED = {"cfg_img_scale": 1.5, "cfg_renorm_type": "text_channel"}


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    pluginmanager.register(pytest_findings)
    group = parser.getgroup("verify", "which loops are verified, and where")
    group.addoption("--target", default="builtin", help="whose loops tests/claims judge (default builtin)")
    group.addoption("--preset", default="tiny", help="model size: tiny, small or 7b (default tiny)")
    group.addoption("--world-size", type=int, default=None, help="ranks; default: 2, and 3 with image guidance")
    group.addoption("--device", default="cpu", help="cpu or cuda (default cpu)")
    group.addoption("--backend", default=None, help="gloo or nccl; default what fits")
    group.addoption("--require-gpus", type=int, default=0, help="fail, not skip, what needs up to this many GPUs")


def pytest_configure(config: pytest.Config) -> None:
    option = config.option
    try:
        find_target(option.target)
        preset(option.preset)
        _require("--device", option.device, ("cpu", "cuda"))
        _require("--backend", option.backend, (None, "gloo", "nccl"))
        if option.world_size is not None and not 1 <= option.world_size <= 64:
            raise BadInput.of("--world-size", option.world_size, "an integer from 1 to 64", "choose one in that range")
        if not 0 <= option.require_gpus <= 64:
            raise BadInput.of("--require-gpus", option.require_gpus, "a number from 0 to 64", "choose one")
    except BadInput as error:
        raise pytest.UsageError(str(error)) from None
    if not hasattr(config, "workerinput") and config.getoption("numprocesses", None):
        return  # The controller of pytest -n runs no test itself.
    if not option.collectonly:
        fork_server()  # Imports torch for the ranks while tests are collected.


def _require(option: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise BadInput.of(option, value, f"one of {', '.join(str(a) for a in allowed if a)}", "choose one")


def pytest_unconfigure(config: pytest.Config) -> None:
    del config
    close_fork_server()


def pytest_report_header(config: pytest.Config) -> list[str]:
    option = config.option
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    nccl = f", NCCL {'.'.join(map(str, torch.cuda.nccl.version()))}" if gpus else ""
    variables = bit_variables(os.environ)
    world = option.world_size or "2, and 3 with image guidance"
    return [
        f"verify: target {option.target} (loops: {_offered(option.target)}), preset {option.preset}, "
        f"device {option.device}, world size {world}, requires {option.require_gpus} GPUs",
        f"verify: torch {torch.__version__}, {cuda}{nccl}, GPUs: {', '.join(gpus) or 'none'}",
        "verify: variables that can change bits: "
        + (", ".join(f"{name}={value}" for name, value in variables.items()) or "none set"),
    ]


def _offered(name: str) -> str:
    """The target's loops; those of the built-in target that it lacks are named too, since no test will name them."""
    loops = [loop for loop in find_target(name).loops if loop != REFERENCE]
    lacking = [loop for loop in find_target("builtin").loops if loop not in find_target(name).loops]
    return ", ".join(loops) + (f"; not offered: {', '.join(lacking)}" if lacking else "")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``target_loop`` is each of the target's loops in turn."""
    if "target_loop" in metafunc.fixturenames:
        metafunc.parametrize("target_loop", default_loops(find_target(metafunc.config.option.target)))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "nightly" not in config.option.markexpr:
        # Hours of tests run when they are asked for by name; pytest counts them as deselected.
        night = [item for item in items if item.get_closest_marker("nightly")]
        config.hook.pytest_deselected(items=night)
        items[:] = [item for item in items if not item.get_closest_marker("nightly")]
    for item in items:
        for mark in item.iter_markers("gpu"):
            needed = mark.kwargs.get("count", 1)
            if torch.cuda.device_count() < needed and config.option.require_gpus < needed:
                item.add_marker(pytest.mark.skip(reason=f"needs {needed} GPU, found {torch.cuda.device_count()}"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("gpu"):
        needed = mark.kwargs.get("count", 1)
        if torch.cuda.device_count() < needed:
            pytest.fail(f"needs {needed} GPU, found {torch.cuda.device_count()}, and --require-gpus forbids skipping")


class Verifier:
    """Runs jobs as the options say, and turns findings into assertions."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self._reports: dict[Job, RunReport] = {}

    def job(self, guidance: str, **changes: object) -> Job:
        """The job that the options describe, with ``text`` or ``text and image`` guidance.

        Skips when the options ask for a world size that the guidance does not have.
        """
        option = self.config.option
        side = preset(option.preset).side
        request = DenoiseRequest(height=side, width=side, **(IMAGE_GUIDED if "image" in guidance else {}))  # type: ignore[arg-type]
        try:
            branches = understood(find_target(option.target), request).branches
        except BadInput as error:
            pytest.skip(f"{guidance} guidance is not offered by target {option.target}: {error}")
        if option.world_size is not None and option.world_size != len(branches):
            pytest.skip(f"--world-size {option.world_size}: {guidance} guidance has {len(branches)} branches")
        job = Job(
            request=request,
            options=ModelOptions(option.preset, autocast=option.device == "cuda"),
            target=option.target,
            device=option.device,
            backend=option.backend,
            timeout=DEFAULT_TIMEOUT,
        )
        return replace(job, **changes)  # type: ignore[arg-type]

    def require_loops(self, count: int = 1, named: str | None = None) -> None:
        """Skips, and says that the target does not offer it, unless it has that many loops, or that one."""
        target = find_target(self.config.option.target)
        offered = default_loops(target) if named is None else tuple(target.loops)
        if len(offered) < count or (named is not None and named not in offered):
            wanted = f"loop {named}" if named is not None else f"{count} loops to compare"
            pytest.skip(f"{wanted} not offered by target {target.name}, whose loops are {', '.join(offered)}")

    def report(self, job: Job) -> RunReport:
        """The job's report; each job runs once a session."""
        __tracebackhide__ = True
        if job not in self._reports:
            self._reports[job] = run_job(job)
        report = self._reports[job]
        if report.failure is not None:
            text = rank_failure_text(report.failure, report.command)
            pytest_findings.record(self.config, "", report.failure["task"], report.verdict, "", text)
            pytest.fail(text, pytrace=False)
        if not report.findings:
            text = "nothing was judged: " + "; ".join(report.notes)
            pytest_findings.record(self.config, "", "", report.verdict, "", text)
            pytest.fail(text, pytrace=False)
        return report

    def assert_pass(self, job: Job, check: str, loop: str) -> Finding:
        """Fails with the whole message of the finding unless it is a pass."""
        __tracebackhide__ = True
        report = self.report(job)
        (finding,) = [f for f in report.findings if f.name == check and f.loop == loop]
        if finding.verdict is not Verdict.PASS:
            text = failure_text(finding, report.command)
            pytest_findings.record_finding(self.config, finding, text)
            pytest.fail(text, pytrace=False)
        pytest_findings.record_finding(self.config, finding)
        return finding


@pytest.fixture(scope="session")
def verifier(request: pytest.FixtureRequest) -> Verifier:
    """Runs jobs as ``--target``, ``--preset``, ``--world-size`` and ``--device`` say."""
    return Verifier(request.config)
