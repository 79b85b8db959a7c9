"""What surrounds a command and would be misread by a library without a word, looked at before any is loaded."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

from verify.errors import BadInput

_COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_COUNT = re.compile(r"\s*[1-9]\d{0,8}\s*(,\s*[1-9]\d{0,8}\s*)*")
# What the CUDA driver takes: numbers, and names by their beginning. After anything else it sees no further GPU.
_GPU = re.compile(r"\s*(-?\d+|(GPU|MIG)-[\w/-]+)\s*", re.ASCII)


def check_surroundings() -> None:
    """What every command needs before it loads a library.

    OpenMP ignores what is no number and then takes as many threads as it likes; MKL ends a process whose working
    directory has been removed.

    Raises:
        BadInput: a number of threads is none, or there is no working directory.
    """
    try:
        os.getcwd()
    except OSError:
        raise BadInput("the working directory has been removed, expected one that exists; change to another") from None
    for name in _COUNTS:
        value = os.environ.get(name)
        if value and not _COUNT.fullmatch(value):
            raise BadInput.of(name, value, "a number of threads from 1", "correct or unset it")


def check_distribution(folder: Path) -> None:
    """Two packages have one module name: whichever is installed later takes files of the other.

    Args:
        folder: where this package lies.

    Raises:
        BadInput: the package of that name on the index is installed in the same folder.
    """
    names = {path.name.lower() for path in folder.glob("verify-*.dist-info")}
    if names:
        raise BadInput(
            f"another package named verify is installed in {folder} ({min(names)}), expected cfg-verify alone, whose "
            "module is verify too; uninstall both, then install cfg-verify"
        )


def check_gpus() -> None:
    """Where GPUs are asked for, a list of none must not look like a machine without GPUs.

    Raises:
        BadInput: ``CUDA_VISIBLE_DEVICES`` holds something else than GPUs.
    """
    value = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if value.strip() and not all(map(_GPU.fullmatch, value.split(","))):
        expected = "numbers of GPUs, or names GPU-... or MIG-..., separated by commas"
        raise BadInput.of("CUDA_VISIBLE_DEVICES", value, expected, "correct or unset it")


def check_network() -> None:
    """Ranks over gloo would end in an exception each.

    Raises:
        BadInput: ``GLOO_SOCKET_IFNAME`` names an interface that this machine does not have.
    """
    value = os.environ.get("GLOO_SOCKET_IFNAME")
    known = [name for _, name in socket.if_nameindex()]
    for name in value.split(",") if value else ():
        if name not in known:
            raise BadInput.of("GLOO_SOCKET_IFNAME", value, f"one of {', '.join(known)}", "choose one or unset it")
