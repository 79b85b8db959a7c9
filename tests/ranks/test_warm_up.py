"""What the fork server has imported, ranks need not import; what it cannot import harms nobody."""

from __future__ import annotations

import pytest
import tasks

from verify.ranks.local.forkserver import fork_server
from verify.ranks.local.pool import PoolSpec, RankPool


@pytest.mark.parametrize(
    ("function", "module", "there"),
    [
        ("fileinput:nothing", "fileinput", True),
        ("colorsys:rgb_to_hsv", "colorsys", True),
        ("no_such_module:f", "netrc", False),
    ],
)
def test_ranks_inherit_what_the_fork_server_imports(function: str, module: str, there: bool) -> None:
    """Whether or not the function can be called: ``fileinput`` has no such function, ``rgb_to_hsv`` takes arguments."""
    fork_server().warm_up(function)
    with RankPool(PoolSpec(("cpu",))) as pool:
        assert pool.run(tasks.has_imported, module) == [there]
