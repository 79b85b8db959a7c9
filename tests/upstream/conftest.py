"""All of this folder drives the installed vllm-omni; where there is none, each test says so and is skipped."""

from __future__ import annotations

from importlib import metadata, util
from pathlib import Path

import pytest
import torch
from expected import Facts, facts_of

from verify.ranks.local.forkserver import fork_server
from verify.targets.vllm_omni.target import VllmOmniTarget

_HERE = Path(__file__).parent
INSTALLED = metadata.version("vllm-omni") if util.find_spec("vllm_omni") is not None else None


# Test files that judge what no release has, so that they run without any.
_WITHOUT_A_RELEASE = ("test_install.py",)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _HERE in item.path.parents and item.path.name not in _WITHOUT_A_RELEASE:
            item.add_marker(pytest.mark.upstream)
            # Importing vllm in each rank takes half a minute where two cores are shared.
            item.add_marker(pytest.mark.timeout(600))
            if INSTALLED is None:
                item.add_marker(pytest.mark.skip(reason="vllm-omni is not installed; tox run -e upstream-0.30.0"))


@pytest.fixture(scope="session")
def facts() -> Facts:
    """What is expected of the installed release."""
    assert INSTALLED is not None
    return facts_of(INSTALLED)


@pytest.fixture(scope="session", autouse=True)
def _imported_once() -> None:
    """The process that ranks are forked from imports upstream, so that no rank of any test repeats it."""
    if INSTALLED is not None and not torch.cuda.is_available():
        fork_server().warm_up(VllmOmniTarget.warm_up)
