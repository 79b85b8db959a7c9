"""Two hosts whose names do not resolve: they pass, and a link that fails is told with the host behind it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hosts import Hosts, missing
from launches import FEW, LOOPS, valid
from patience import patient

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(590)]


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    if reason := missing():
        pytest.skip(reason)
    with Hosts(tmp_path) as both:
        yield both


def document(hosts: Hosts) -> dict[str, Any]:
    return valid(json.loads((hosts.folder / "run.json").read_text()))


def json_of(hosts: Hosts) -> tuple[str, str]:
    return "--json", str(hosts.folder / "run.json")


@pytest.mark.parametrize("version", [4, 6])
def test_one_replica_over_both(hosts: Hosts, version: int) -> None:
    assert hosts.run((0, 1), *FEW, *json_of(hosts), version=version) == [0, 0], hosts.output(0)
    found = document(hosts)
    assert found["replicas"] == [{"replica": 0, "ranks": [0, 1], "hosts": ["node-a", "node-b"]}]


@pytest.mark.parametrize("sides", [(0, 0, 1, 1), (0, 1, 0, 1)], ids=["a replica a host", "each replica over both"])
def test_two_replicas(hosts: Hosts, sides: tuple[int, ...]) -> None:
    assert hosts.run(sides, *FEW, *json_of(hosts)) == [0] * 4, hosts.output(0)
    where = [f"node-{'ab'[side]}" for side in sides]
    assert [replica["hosts"] for replica in document(hosts)["replicas"]] == [where[:2], where[2:]]


def test_a_slow_link_that_loses_packets(hosts: Hosts) -> None:
    hosts.slow("delay", "25ms", "loss", "1%")  # In each direction.
    assert hosts.run((0, 1), *FEW) == [0, 0], hosts.output(0)


def test_a_bit_that_one_host_gets_wrong(hosts: Hosts) -> None:
    assert hosts.run((0, 1), *FEW, *json_of(hosts), "--loop", f"{LOOPS}:one_ulp", VICTIM="1") == [1, 1]
    assert {c["name"] for c in document(hosts)["checks"] if c["verdict"] == "fail"} >= {"ranks_agree"}


def test_a_link_that_is_cut(hosts: Hosts) -> None:
    """Both hosts end in the bound, and what global rank 0 reports names the other host."""
    for rank in (0, 1):
        hosts.start(rank, rank, 2, *FEW, *json_of(hosts), "--loop", f"{LOOPS}:stands", variables={"VICTIM": "1"})
    deadline = time.monotonic() + 150
    while not (hosts.folder / "stands 1").exists():
        assert time.monotonic() < deadline, hosts.output(0)
        time.sleep(0.1)
    hosts.cut()
    cut = time.monotonic()
    assert hosts.statuses() == [3, 3], hosts.output(0) + hosts.output(1)
    assert time.monotonic() - cut < patient(60.0)
    first = document(hosts)["failure"]["ranks"][0]
    assert first["rank"] == 1
    assert first["where"] == "rank 1 of replica 0, on node-b"
    assert "is cut off" in hosts.output(1)


def test_a_host_that_is_shown_the_wrong_interface(hosts: Hosts) -> None:
    """The reason and what mends it are told, in place of the library's own words alone."""
    hosts.start(0, 0, 2, *FEW, variables={"GLOO_SOCKET_IFNAME": "lo"})
    hosts.start(1, 1, 2, *FEW, variables={"GLOO_SOCKET_IFNAME": "lo"})
    assert hosts.statuses(300.0) == [3, 3]
    assert "GLOO_SOCKET_IFNAME must name the interface" in hosts.output(0)
