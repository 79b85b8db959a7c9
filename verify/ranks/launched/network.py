"""Which network reaches the other hosts. Gloo asks for the host's name, which need not resolve to an address there."""

from __future__ import annotations

import fcntl
import ipaddress
import os
import socket
import struct
from pathlib import Path

_SIOCGIFADDR = 0x8915
_LOOPBACK = "lo"


def choose_interface(address: str, port: int) -> None:
    """Has gloo use the interface that reaches ``address``, unless the user has chosen one or it is not found."""
    if "GLOO_SOCKET_IFNAME" not in os.environ and (name := interface_to(address, port)) not in ("", _LOOPBACK):
        os.environ["GLOO_SOCKET_IFNAME"] = name


def interface_to(address: str, port: int) -> str:
    """The interface over which this host reaches ``address``; empty if that is not found out. Nothing is sent."""
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(target)
            own = ipaddress.ip_address(probe.getsockname()[0].partition("%")[0])
    except (OSError, ValueError):
        return ""
    return next((name for _, name in socket.if_nameindex() if own in _addresses(name)), "")


def interfaces() -> str:
    """The interfaces of this host but the loopback, for a message."""
    return ", ".join(name for _, name in socket.if_nameindex() if name != _LOOPBACK) or "none"


def _addresses(name: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    found: list[ipaddress.IPv4Address | ipaddress.IPv6Address] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            answer = fcntl.ioctl(any_socket, _SIOCGIFADDR, struct.pack("256s", name[:15].encode()))
            found.append(ipaddress.IPv4Address(answer[20:24]))
        except OSError:
            pass  # It has no IPv4 address.
    try:
        lines = Path("/proc/net/if_inet6").read_text().splitlines()
    except OSError:
        return found
    rows = [line.split() for line in lines]
    return found + [ipaddress.IPv6Address(bytes.fromhex(row[0])) for row in rows if row[-1] == name]
