"""A CFG group inside a larger world, ranks in fresh interpreters, and loops that end torch.distributed."""

from __future__ import annotations

from pathlib import Path

import pytest
import tasks
from pools import shared_pool

from verify.ranks.group import can_permute
from verify.ranks.local.pool import PoolSpec, RankPool
from verify.request import DenoiseRequest
from verify.runner.elsewhere import run_twice
from verify.runner.job import Job
from verify.runner.run import run_job
from verify.runner.run_report import RunReport
from verify.verdict import Verdict


def test_a_group_in_a_larger_world_has_its_own_numbers() -> None:
    group = (3, 1) if can_permute() else (1, 3)
    with RankPool(PoolSpec(("cpu",) * 4, group=group)) as pool:
        found = pool.run(tasks.numbers, each=[("first",), ("second",)])
    assert [told["given"] for told in found] == ["first", "second"]
    assert [(told["rank"], told["of"], told["world"]) for told in found] == [(0, 2, 4), (1, 2, 4)]
    assert [told["global"] for told in found] == [*group]
    assert all(told["gathered"] == [*group] and told["from rank 1"] == group[1] for told in found)


def test_fresh_interpreters_have_a_hash_seed_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "123")  # As tox and some scripts do: the ranks must not share it.
    with RankPool(PoolSpec(("cpu", "cpu"), fresh_interpreters=True)) as pool:
        found = pool.run(tasks.numbers, "")
        assert len({told["hash"] for told in found}) == 2
        before = pool.pids
        assert pool.run(tasks.identity, 7) == [7, 7]
        assert pool.pids == before
    forked = shared_pool(2).run(tasks.numbers, "")
    assert len({told["hash"] for told in forked}) == 1


def test_ranks_without_their_default_group_are_replaced() -> None:
    pool = shared_pool(2)
    before = pool.pids
    assert pool.run(tasks.destroy_the_default_group) == [True, True]
    assert pool.run(tasks.identity, 7) == [7, 7]
    assert not set(before) & set(pool.pids)


DESTROYS = """
import torch.distributed as dist
from verify.loops.local import local
def loop(denoiser, request, x_0, group, observe):
    x = local(denoiser, request, x_0, group, observe)
    dist.destroy_process_group()
    return x
"""

BY_WORLD_RANK = """
import torch.distributed as dist
from verify.loops.local import local
class Mistaken:
    def __init__(self, denoiser, request):
        self.denoiser, self.request = denoiser, request
    def velocity(self, x_t, step, branch):
        own = min(dist.get_rank(), len(self.request.branches) - 1)
        number = own if self.request.schedule.guided[step] else 0
        return self.denoiser.velocity(x_t, step, self.request.branches[number])
def loop(denoiser, request, x_0, group, observe):
    return local(Mistaken(denoiser, request), request, x_0, group, observe)
"""


def judged(folder: Path, source: str, larger_world: bool = False) -> RunReport:
    path = folder / "loop.py"
    path.write_text(source)
    request, reference = DenoiseRequest(num_timesteps=8), f"{path}:loop"
    return run_job(Job(request, loops=(), loop_reference=reference, larger_world=larger_world, requests="one"))


def test_a_loop_that_destroys_the_default_group_is_told_so(tmp_path: Path) -> None:
    (finding,) = [f for f in judged(tmp_path, DESTROYS).findings if f.verdict is Verdict.FAIL]
    assert finding.name == "state_frozen"
    assert finding.summary == (
        "every rank changed its process groups during the loop: the default group, which it destroyed"
    )


def test_a_branch_chosen_by_the_rank_in_the_world_is_seen_in_a_larger_one(tmp_path: Path) -> None:
    assert judged(tmp_path, BY_WORLD_RANK).verdict is Verdict.PASS
    report = judged(tmp_path, BY_WORLD_RANK, larger_world=True)
    assert report.verdict is Verdict.FAIL
    (engaged,) = [f for f in report.findings if f.name == "parallelism_engaged"]
    first = 3 if can_permute() else 1
    assert engaged.summary.startswith(f"rank {first} (rank 0 of the CFG group) evaluated text, expected gen in step 0")
    assert report.environment[0]["rank"] == first


ORDER_OF_HASHES = """
from verify.loops.guidance import guide
def loop(denoiser, request, x_0, group, observe):
    # As the order of a set: the same on ranks that share a hash seed.
    order = sorted(request.branches, key=lambda branch: hash(branch + "a"))
    schedule, branch = request.schedule, order[group.rank]
    x_t = group.broadcast(x_0)
    for step, (guided, dt) in enumerate(zip(schedule.guided, schedule.dts, strict=True)):
        if guided:
            found = dict(zip(order, group.all_gather(denoiser.velocity(x_t, step, branch))))
            v_t = guide(request, [found[branch] for branch in request.branches])
        else:
            v_t = denoiser.velocity(x_t, step, "gen")
        x_t = x_t - v_t * dt
        observe(step, x_t)
    return x_t
"""


def test_a_users_loop_that_passes_is_run_again_where_more_can_be_wrong(tmp_path: Path) -> None:
    path = tmp_path / "loop.py"
    path.write_text(ORDER_OF_HASHES)
    job = Job(DenoiseRequest(num_timesteps=8), loops=(), loop_reference=f"{path}:loop", expect="any", requests="one")
    assert run_job(job).verdict is Verdict.PASS
    report = run_twice(job)
    assert report.verdict is Verdict.FAIL
    assert "--fresh-interpreters" in report.command
    assert "--larger-world" in report.command
    path.write_text("from verify.loops.local import local as loop")
    assert "passes too in fresh interpreters and as a part of a larger world" in run_twice(job).notes
