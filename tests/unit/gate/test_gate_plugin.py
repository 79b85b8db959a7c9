"""The plugin in sessions of its own: it does nothing until asked, and a target of which nothing was judged fails."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from verify.fuzz.session import FuzzJob
from verify.gate import plugin
from verify.gate.claims import CLAIMED, WHOLE, plan
from verify.gate.header import github_errors
from verify.runner.job import Job

ROOT = Path(__file__).parents[3]
TOY = ROOT / "tests" / "examples" / "toy_target.py"

HOST = """
import pytest


def pytest_addoption(parser):
    parser.addoption("--device", default="host's own")
    parser.addoption("--target", default="host's own")


@pytest.fixture
def verifier():
    return "host's own"
"""
HOST_TESTS = """
import sys
import pytest


@pytest.mark.nightly
@pytest.mark.gpu
def test_hosts_own(verifier, pytestconfig):
    assert (verifier, pytestconfig.option.device, pytestconfig.option.target) == ("host's own",) * 3
    assert getattr(pytestconfig.option, "verify_target", None) or "torch" not in sys.modules
    assert [mark.name for mark in pytestconfig.host_item.iter_markers()] == ["gpu", "nightly"]


@pytest.fixture(autouse=True)
def _item(request):
    request.config.host_item = request.node
"""
ON_PATH = f"import sys; sys.path.insert(0, {str(TOY.parent)!r})\n"
TARGETS = """
from toy_target import ToyTarget
from verify.errors import BadInput


class RefusesAll(ToyTarget):
    def branches(self, request):
        raise BadInput("the engine's config is missing, expected a file; install it")


class ScheduleRaises(ToyTarget):
    def schedule(self, request):
        raise ValueError("no scheduler")


class NothingToJudge(ToyTarget):
    default = ()
"""

OFFERS = """
from toy_target import ToyTarget
from verify import combine_cfg


class Offers(ToyTarget):
    combine = staticmethod(combine_cfg)
"""


def session(folder: Path, *words: str, loaded: bool = True) -> tuple[int, str]:
    """A session as in an environment where the package is installed, whether or not it is in this one."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:randomly", *words]
    command[3:3] = ["-p", plugin.__name__ if loaded else f"no:{plugin.__name__}"]
    paths = os.pathsep.join([str(ROOT), str(TOY.parent)])
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=240, env=os.environ | {"PYTHONPATH": paths}
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def host(tmp_path: Path) -> Path:
    (tmp_path / "conftest.py").write_text(HOST)
    (tmp_path / "test_host.py").write_text(HOST_TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers\nmarkers =\n  nightly\n  gpu\n")
    (tmp_path / "targets.py").write_text(ON_PATH + TARGETS)
    return tmp_path


def test_nothing_of_the_host_changes(host: Path) -> None:
    with_plugin, without = session(host), session(host, loaded=False)
    assert with_plugin[0] == without[0] == 0, with_plugin[1] + without[1]
    assert "verify:" not in with_plugin[1]
    # Pytest itself names what is installed, and says how long it took.
    lines = [
        [line for line in text.splitlines() if " in " not in line and not line.startswith("plugins: ")]
        for _, text in (with_plugin, without)
    ]
    assert lines[0] == lines[1]


def test_the_entry_point_is_named_like_its_module() -> None:
    """Else -p and pytest_plugins, which name the module, would fail where the package is installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {plugin.__name__: plugin.__name__}


def test_a_conftest_may_name_the_plugin(host: Path) -> None:
    (host / "conftest.py").write_text(f"pytest_plugins = [{plugin.__name__!r}]\n{HOST}")
    status, text = session(host)
    assert status == 0, text


def test_the_claims_run_from_any_repository(host: Path) -> None:
    status, text = session(host, "--pyargs", "verify.gate", "--verify-target", f"{TOY}:ToyTarget", "-q", "-k", "text")
    assert status == 0, text
    assert f"claims about target {TOY}:ToyTarget were judged" in text
    assert "not judged: text_and_image: cfg_img_scale is 1.5, expected 1.0: two branches only" in text


@pytest.mark.parametrize("processes", [(), pytest.param(("-n", "2"), marks=pytest.mark.nightly)])
def test_a_broken_target_is_red_with_rank_step_and_cause_first(host: Path, processes: tuple[str, ...]) -> None:
    few = ("-q", "-k", "text and (ranks_agree or verdict)", *processes)
    status, text = session(host, "--pyargs", "verify.gate", "--verify-target", f"{TOY}:BrokenTarget", *few)
    assert status == 1, text
    screen = text.split("= FAILURES =")[1].splitlines()[:24]
    assert any("step 0" in line and "rank" in line for line in screen)
    assert any("aten::randn.generator" in line for line in screen)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("RefusesAll", "is refused: the engine's config is missing"),
        ("ScheduleRaises", "raised ValueError: no scheduler"),
        ("NothingToJudge", "name at least one"),
    ],
)
def test_a_target_that_cannot_be_judged_has_one_claim_that_fails(host: Path, target: str, said: str) -> None:
    claims = plan(Job(target=f"{host}/targets.py:{target}")).claims
    assert [(claim.way, claim.loop, claim.check) for claim in claims] == [("text", "*", "verdict")]
    assert said in claims[0].problem


def test_a_named_target_of_which_no_claim_ran_has_not_passed(host: Path) -> None:
    named = ("--verify-target", f"{TOY}:ToyTarget")
    status, text = session(host, "test_host.py", *named)
    assert status == 1, text
    assert f"verify: no claim about target {TOY}:ToyTarget was judged, so it has not passed" in text


def test_every_way_and_loop_has_its_claims() -> None:
    found = plan(Job())
    ways = {(claim.way, claim.loop) for claim in found.claims if claim.loop != "*"}
    assert ways == {
        *(("text", loop) for loop in ("broadcast", "local")),
        *(("text_and_image", loop) for loop in ("broadcast", "local")),
        ("three_branches_on_two_ranks", "round_robin"),
    }
    assert found.not_judged == ()
    assert {claim.check for claim in found.claims} == {*CLAIMED, "verdict"}
    assert {"fresh_interpreters", "larger_world"} <= {claim.way for claim in found.claims if claim.check == "verdict"}


def test_a_number_of_ranks_chooses_the_request() -> None:
    found = plan(Job(world_size=3))
    assert {claim.way for claim in found.claims} == {"text_and_image"}
    assert found.not_judged[0] == "text: --world-size 3: this request has 2 branches"
    (claim,) = plan(Job(world_size=4)).claims
    assert claim.problem.startswith("nothing can be judged: text: --world-size 4: ")


def test_loops_that_are_no_default_are_named_as_not_judged() -> None:
    assert "round_robin" in plan(Job(world_size=3)).not_judged[-1]


def test_a_loop_of_your_own_is_judged_in_place_of_the_targets() -> None:
    claims = plan(Job(loop_reference="verify.loops.local:local")).claims
    assert {(claim.way, claim.loop) for claim in claims} == {
        *((way, loop) for way in ("text", "text_and_image") for loop in ("*", "verify.loops.local:local")),
        *((way, "*") for way in WHOLE),
    }


def test_a_combine_that_a_target_offers_is_fuzzed(tmp_path: Path) -> None:
    (tmp_path / "offers.py").write_text(ON_PATH + OFFERS)
    target = f"{tmp_path}/offers.py:Offers"
    claims = [claim for claim in plan(Job(target=target)).claims if claim.way == "combine"]
    assert "ranks_agree" in {claim.check for claim in claims}
    assert FuzzJob(combine=f"target:{target}").command.endswith(f"--target {target} --world-size 2 --device cpu")


@pytest.mark.parametrize(("shards", "status"), [(None, 1), (1, 1), (2, 0)])
def test_a_part_of_the_tests_may_hold_no_claim(shards: int | None, status: int) -> None:
    """As pytest-shard gives each session: the others have the claims."""
    config: Any = SimpleNamespace(stash=pytest.Stash(), option=SimpleNamespace(collectonly=False, num_shards=shards))
    config.option.verify_target = f"{TOY}:ToyTarget"
    config.stash[plugin._TALLY] = plugin.Tally()
    ending: Any = SimpleNamespace(config=config, exitstatus=0)
    plugin.pytest_sessionfinish(ending, 0)
    assert ending.exitstatus == status


OWN_TEST = """
from verify import combine_cfg


def my_loop(denoiser, request, x_0, group, observe):
    x_t = group.broadcast(x_0)
    for step, (guided, dt) in enumerate(zip(request.schedule.guided, request.schedule.dts)):
        v_t = denoiser.velocity(x_t, step, request.branches[group.rank] if guided else "gen")
        if guided:
            gen, text = group.all_gather(v_t)
            r = request
            v_t = combine_cfg(gen, text, None, r.cfg_text_scale, 1.0, r.cfg_renorm_type, r.cfg_renorm_min)
        x_t = x_t - v_t * dt
        observe(step, x_t)
    return x_t


def test_my_loop(verifier):
    report = verifier.run(loop=my_loop)
    verifier.assert_pass(report)
    verifier.assert_pass(report, "ranks_agree")


def test_what_there_is_not(verifier):
    verifier.assert_pass(verifier.run(loop=my_loop), "no_such_check")


def test_a_lambda(verifier):
    verifier.run(loop=lambda *five: five[2])
"""


def test_the_fixture_judges_a_function(tmp_path: Path) -> None:
    (tmp_path / "test_own.py").write_text(OWN_TEST)
    status, text = session(tmp_path, "-q")
    assert status == 1
    assert "2 failed, 1 passed" in text
    assert "nothing says no_such_check of any loop" in text
    assert "define it with def at the top of a file" in text


def test_failures_are_annotations_where_github_runs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = [("check", "finite"), ("loop", "a,b"), ("verdict", "fail"), ("message", "100 % off\nat step 3")]
    failed = [SimpleNamespace(user_properties=properties, longreprtext=""), SimpleNamespace(user_properties=[])]
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    assert github_errors(failed) == []
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert github_errors(failed) == ["::error title=verify finite a b::100 %25 off%0Aat step 3"]
