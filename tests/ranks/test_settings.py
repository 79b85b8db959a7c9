"""Every setting is really made in a rank, has its reason, and is recorded."""

from __future__ import annotations

import os
import socket

import pytest
import tasks
import torch
from pools import shared_pool

from verify.environment.properties import BY_NAME
from verify.environment.variables import bit_variables
from verify.ranks.local.forkserver import fork_server
from verify.ranks.local.pool import PoolSpec, RankPool
from verify.ranks.settings import FLAGS, ONE_MACHINE_VARIABLES, VARIABLES, apply_environment

EVERYWHERE = (*VARIABLES, *ONE_MACHINE_VARIABLES)


def test_each_setting_has_a_reason_of_its_own() -> None:
    reasons = [setting.reason for setting in (*EVERYWHERE, *FLAGS)]
    assert min(map(len, reasons)) > 20
    assert len(set(reasons)) == len(reasons)
    assert len({setting.name for setting in (*EVERYWHERE, *FLAGS)}) == len(reasons)


def test_each_flag_can_be_seen_to_change() -> None:
    known = [(BY_NAME[flag.name], flag.value) for flag in FLAGS]
    before = [setting.read() for setting, _ in known]
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        for setting, value in known:
            assert setting.write is not None
            for wanted in (not value, value):
                setting.write(wanted)
                assert setting.read() == wanted, setting.name
    finally:
        for (setting, _), value in zip(known, before, strict=True):
            assert setting.write is not None
            setting.write(value)
    assert torch.is_deterministic_algorithms_warn_only_enabled() is warn_only


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_flags_and_variables_are_set_and_recorded_on_every_rank(world_size: int) -> None:
    found = shared_pool(world_size).run(tasks.surroundings)
    assert len(found) == world_size
    for rank in found:
        assert rank["flags"] == {flag.name: flag.value for flag in FLAGS}
        assert rank["warn_only"]
        for variable in EVERYWHERE:
            assert rank["variables"][variable.name] == os.environ.get(variable.name, variable.value)
        recorded = rank["environment"]
        now = recorded["settings"]
        assert now["deterministic_debug_mode"] == 1
        assert {name: now[name] for name in rank["flags"] if name in now}.items() <= rank["flags"].items()
        assert now["threads"] == rank["threads"] == shared_pool(world_size).spec.threads
        expected = bit_variables(rank["variables"])
        assert recorded["variables"] == expected
        assert {"CUBLAS_WORKSPACE_CONFIG", "NCCL_NVLS_ENABLE", "OMP_NUM_THREADS"} <= set(expected)
        assert (recorded["torch"], recorded["host"]) == (torch.__version__, socket.gethostname())
        assert (recorded["device"], recorded["backend"]) == ("cpu", "gloo")
    assert all(rank["environment"] == found[0]["environment"] for rank in found)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_are_equal_on_all_ranks(threads: int) -> None:
    with RankPool(PoolSpec(("cpu", "cpu"), threads=threads)) as pool:
        found = pool.run(tasks.surroundings)
    for rank in found:
        assert rank["threads"] == threads
        assert f"at::get_num_threads() : {threads}\n" in rank["openmp"]
        assert f"omp_get_max_threads() : {threads}\n" in rank["openmp"]
    assert found[0]["openmp"] == found[1]["openmp"]


def test_the_process_that_ranks_are_forked_from_has_one_thread() -> None:
    shared_pool(1)
    assert len(os.listdir(f"/proc/{fork_server().process.pid}/task")) == 1  # A fork keeps the calling thread only.


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of the variables is set, and what the test makes of them is undone."""
    for variable in EVERYWHERE:
        monkeypatch.setenv(variable.name, "")
        monkeypatch.delenv(variable.name)


@pytest.mark.usefixtures("unset")
def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_NVLS_ENABLE", "1")
    apply_environment()
    assert os.environ["NCCL_NVLS_ENABLE"] == "1"
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"


@pytest.mark.usefixtures("unset")
def test_between_machines_gloo_finds_the_network_itself() -> None:
    apply_environment(one_machine=False)
    assert {v.name for v in EVERYWHERE if v.name in os.environ} == {v.name for v in VARIABLES}


@pytest.mark.usefixtures("unset")
def test_a_machine_without_that_interface_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "if_nameindex", lambda: [(1, "eth0")])
    apply_environment()
    assert "GLOO_SOCKET_IFNAME" not in os.environ
