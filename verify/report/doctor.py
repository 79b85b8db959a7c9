"""What a machine can run, for a person to read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from verify.report.console import say

_GIB = 2**30


def print_machine(machine: Mapping[str, Any], purposes: Mapping[str, str], console: Console) -> None:
    """Prints what :func:`verify.commands.machine.inspect_machine` found.

    Args:
        machine: what it found.
        purposes: what each package is for.
        console: where to print.
    """
    m = machine
    cuda = f"CUDA {m['cuda']}" if m["cuda"] else "without CUDA"
    nccl = f", NCCL {m['nccl']}" if m["nccl"] else ""
    say(console, f"Python {m['python']}, torch {m['torch']} {cuda}{nccl}, {m['system']}")
    say(console, f"backends: {', '.join(m['backends']) or 'none'}")
    say(console, f"cpu: {m['cores']} cores, {size(m['memory'])} of memory to be had")
    for gpu in m["gpus"]:
        free = f"{size(gpu['free'])} free of {size(gpu['memory'])}"
        say(console, f"gpu {gpu['index']}: {gpu['name']}, compute capability {gpu['capability']}, {free}")
    if m["gpu_trouble"]:
        say(console, f"gpus could not be asked: {m['gpu_trouble']}")
    elif not m["gpus"]:
        say(console, "gpus: none")
    say(console, "")
    console.print(_presets(m))
    say(console, "text guidance takes 2 ranks, text and image guidance 3; a shared GPU is used over gloo")
    say(console, "")
    missing = [f"{name} (for {purposes[name]})" for name, version in m["packages"].items() if version is None]
    say(console, f"packages missing: {', '.join(missing) or 'none'}")
    engines = [f"{name} {'can be imported' if there else 'is not there'}" for name, there in m["engines"].items()]
    say(console, f"engines: {', '.join(engines)}")
    for name, folder in m["folders"].items():
        say(console, f"{name}: {_folder(folder)}")
    set_ = ", ".join(f"{name}={value}" for name, value in m["variables"].items())
    say(console, f"variables that can change bits: {set_ or 'none set'}")


def size(count: int | None) -> str:
    """Bytes for a person."""
    if count is None:
        return "an unknown amount"
    return f"{count / _GIB:.1f} GiB" if count >= _GIB else f"{count / 2**20:.1f} MiB"


def _presets(machine: Mapping[str, Any]) -> Table:
    table = Table(show_edge=False, pad_edge=False, header_style="bold")
    for heading in ("preset", "weights a rank", "ranks on cpu", "on GPUs of their own", "on shared GPUs"):
        table.add_column(heading, justify="left" if heading == "preset" else "right")
    for p in machine["presets"]:
        over_nccl = p["nccl_ranks"] if "nccl" in machine["backends"] else 0
        most = (p["cpu_ranks"], over_nccl, p["gloo_cuda_ranks"])
        table.add_row(Text(p["preset"]), size(p["weights"]), *map(_up_to, most))
    return table


def _up_to(ranks: int | None) -> str:
    if ranks is None:
        return "unknown"
    return f"up to {ranks}" if ranks else "none"


def _folder(folder: Mapping[str, Any] | None) -> str:
    if folder is None:
        return "no such folder"
    writable = "" if folder["writable"] else ", not writable"
    return f"{folder['path']}, {size(folder['free'])} free{writable}"
