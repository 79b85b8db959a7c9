"""What pytest does in a checkout of this repository beside the plugin: its options without a prefix, and its marks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from verify.gate import plugin

# Options of `verify run` that a checkout takes without a prefix; the rest is written --verify-...
_UNPREFIXED = ("target", "preset", "world_size", "device", "backend", "require_gpus", "markdown")


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    if not pluginmanager.is_registered(plugin):  # Where the package is installed, its entry point has done so.
        pluginmanager.register(plugin, plugin.__name__)
    group = parser.getgroup("checkout", "the same without a prefix, in a checkout of verify")
    group.addoption("--target", help="whose loops tests/claims judge (default builtin)")
    group.addoption("--preset", default="tiny", help="model size: tiny, small or 7b (default tiny)")
    group.addoption("--world-size", type=int, default=None, help="ranks (default one for each branch)")
    group.addoption("--device", default="cpu", help="cpu or cuda (default cpu)")
    group.addoption("--backend", default=None, help="gloo or nccl; default what fits")
    group.addoption("--require-gpus", type=int, default=0, help="fail, not skip, what needs up to this many GPUs")
    group.addoption("--markdown", metavar="FILE", help="write a summary for a pull request to FILE")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    option: Any = config.option
    for name in _UNPREFIXED:
        if getattr(option, f"verify_{name}") is None:
            setattr(option, f"verify_{name}", getattr(option, name))
    # Without a named target the session is about this repository, and may well run no claim.
    option.verify_own = option.verify_target is None and option.verify_loop is None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    option: Any = config.option
    if "nightly" not in option.markexpr:
        # Hours of tests run when they are asked for by name; pytest counts them as deselected.
        night = [item for item in items if item.get_closest_marker("nightly")]
        config.hook.pytest_deselected(items=night)
        items[:] = [item for item in items if not item.get_closest_marker("nightly")]
    for item in items:
        if option.device == "cuda" and plugin.is_claim(item):  # So that -m gpu, the job on GPUs, judges the target.
            item.add_marker(pytest.mark.gpu)
        for mark in item.iter_markers("gpu"):
            needed = mark.kwargs.get("count", 1)
            if torch.cuda.device_count() < needed and option.require_gpus < needed:
                item.add_marker(pytest.mark.skip(reason=f"needs {needed} GPU, found {torch.cuda.device_count()}"))


@pytest.fixture
def judged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that passes is not run again in fresh interpreters, which takes seconds; ``ranks/test_worlds.py`` does."""
    monkeypatch.setattr("verify.runner.elsewhere._is_worth_it", lambda job: False)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("gpu"):
        needed = mark.kwargs.get("count", 1)
        if torch.cuda.device_count() < needed:
            pytest.fail(f"needs {needed} GPU, found {torch.cuda.device_count()}, and --require-gpus forbids skipping")
