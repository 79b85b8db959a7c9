"""The pytest plugin. It does nothing until an option ``--verify-...`` or the fixture ``verifier`` asks for it.

It is loaded into every pytest session of an environment where this package is installed. So it imports neither torch
nor anything that does, adds no mark, and touches no test that is not its own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import pytest

from verify.gate.findings import RUNNING, summary
from verify.gate.settings import GATE_OPTIONS, Settings, settings_of

if TYPE_CHECKING:
    from verify.gate.verifier import Verifier

# The argument that makes a test one test for each claim.
CLAIM = "verify_claim"
# Options of plugins that give a session only a part of the tests.
_SHARDS = ("num_shards", "splits", "test_group_count")
_TALLY = pytest.StashKey["Tally"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("verify", "judge a denoising loop on real ranks: pytest --pyargs verify.gate")
    for option in GATE_OPTIONS:
        settings: dict[str, Any] = {"dest": f"verify_{option.name}", "default": None, "help": option.told}
        settings |= {"action": "store_true"} if option.switch else {"type": option.type, "metavar": option.metavar}
        settings |= {"action": "append"} if option.repeated else {}
        group.addoption(f"--verify-{option.flag[2:]}", **settings)
    group.addoption("--verify-require-gpus", type=int, metavar="N", help="fail, not skip, what needs up to N GPUs")
    group.addoption("--verify-markdown", metavar="FILE", help="write a summary for a pull request to FILE")


class Tally:
    """How many claims a session had, and how many tests judged something. Under ``pytest -n`` the controller counts."""

    def __init__(self) -> None:
        self.claims: set[str] = set()
        self.judged: set[str] = set()
        self.refusal = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        names = {name for name, _ in report.user_properties}
        if "target" in names:
            self.claims.add(report.nodeid)
        if "verdict" in names:
            self.judged.add(report.nodeid)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_TALLY] = Tally()
    config.pluginmanager.register(config.stash[_TALLY])
    settings = settings_of(config)
    if not settings.asked:
        return
    from verify.errors import BadInput
    from verify.ranks.local.forkserver import fork_server

    worker = getattr(config, "workerinput", {}).get("workerid", "gw0").removeprefix("gw")
    os.environ.setdefault("VERIFY_CONTROLLER", worker)  # The sessions of pytest -n begin at different GPUs.
    runs = hasattr(config, "workerinput") or not config.getoption("numprocesses", None)
    if runs and not config.option.collectonly:  # The controller of pytest -n runs no test itself.
        fork_server()  # Imports torch for the ranks while tests are collected.
    try:
        settings.checked()
    except BadInput as error:
        raise pytest.UsageError(str(error)) from None


def pytest_unconfigure() -> None:
    if (server := sys.modules.get("verify.ranks.local.forkserver")) is not None:
        server.close_fork_server()


def pytest_report_header(config: pytest.Config) -> list[str]:
    settings = settings_of(config)
    if not settings.asked:
        return []
    from verify.gate.header import header

    return header(settings)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes ``verify_claim`` becomes one test for each claim about the target."""
    if CLAIM in metafunc.fixturenames:
        from verify.gate.claims import plan

        metafunc.parametrize(CLAIM, plan(settings_of(metafunc.config).job).claims, ids=str)


def is_claim(item: pytest.Item) -> bool:
    """Whether a test is one of the claims."""
    return CLAIM in getattr(item, "fixturenames", ())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in filter(is_claim, items):
        item.user_properties.append(("target", settings_of(config).subject))


def pytest_runtest_setup(item: pytest.Item) -> None:
    settings = settings_of(item.config)
    if is_claim(item) and settings.device == "cuda":
        from verify.gate.header import missing_gpus

        if missing := missing_gpus(1):
            if settings.require_gpus:
                pytest.fail(f"{missing}, and --require-gpus forbids skipping", pytrace=False)
            pytest.skip(missing)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    item.config.stash[RUNNING] = item
    try:
        return (yield)
    finally:
        del item.config.stash[RUNNING]


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A target for which no claim ran has not passed, whatever was skipped."""
    config, tally = session.config, session.config.stash[_TALLY]
    if hasattr(config, "workerinput") or config.option.collectonly or exitstatus != pytest.ExitCode.OK or tally.judged:
        return
    settings = settings_of(config)
    if tally.claims or (settings.named and not _is_a_part(config)):
        tally.refusal = f"no claim about {settings.subject} was judged, so it has not passed"
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _is_a_part(config: pytest.Config) -> bool:
    """Whether other sessions run the rest of the tests."""
    return any((getattr(config.option, name, None) or 1) > 1 for name in _SHARDS)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    settings, tally = settings_of(config), config.stash[_TALLY]
    if not settings.asked and not tally.claims:
        return
    from verify.gate.header import ending, github_errors

    stats = terminalreporter.stats
    lines = ending(settings, len(tally.claims), len(tally.claims & tally.judged), stats.get("skipped", ()))
    lines += [tally.refusal] if tally.refusal else []
    for line in lines:
        terminalreporter.write_line(f"verify: {line}", red=line == tally.refusal)
    for line in github_errors(stats.get("failed", ())):
        terminalreporter.write_line(line)
    if settings.markdown:
        from verify.report.disk import write_whole

        write_whole(settings.markdown, summary(stats, int(terminalreporter._session.exitstatus), lines))


@pytest.fixture(scope="session")
def verifier(request: pytest.FixtureRequest) -> Verifier:
    """Judges loops from tests of your own: ``verifier.assert_pass(verifier.run(loop="my_loop.py:loop"))``.

    What a call does not say is as the options ``--verify-...`` have it.
    """
    from verify.gate.verifier import Verifier

    return Verifier(request.config)


@pytest.fixture(scope="session")
def verify_gate(request: pytest.FixtureRequest) -> Verifier:
    """The same for the claims: a repository may have a fixture named ``verifier`` of its own."""
    from verify.gate.verifier import Verifier

    return Verifier(request.config)


__all__ = ["Settings", "is_claim", "verifier"]
