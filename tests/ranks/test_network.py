"""Which interface reaches another host, in this host's own terms."""

from __future__ import annotations

import os
import socket

import pytest

from verify.ranks.launched.network import choose_interface, interface_to, interfaces


def test_the_loopback_is_found_and_never_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    if "lo" not in [name for _, name in socket.if_nameindex()]:
        pytest.skip("this host has no loopback interface")
    assert interface_to("127.0.0.1", 29500) == "lo"
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    choose_interface("127.0.0.1", 29500)
    assert "GLOO_SOCKET_IFNAME" not in os.environ
    assert "lo" not in interfaces().split(", ")


def test_what_is_not_found_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert interface_to("no such host", 1) == ""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "mine")
    choose_interface("127.0.0.1", 1)
    assert os.environ["GLOO_SOCKET_IFNAME"] == "mine"
