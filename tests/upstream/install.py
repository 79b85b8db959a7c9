"""Installs a vllm-omni and its vllm into this Python without compiling: ``python tests/upstream/install.py VERSION``.

vllm is built from its source distribution for the target device "empty", which has no extension. What else it needs
comes from ``pins/``: full closures that worked, not minimal ones. A release without a closure of its own takes the next
newer one's (the newest one's if there is none), with what the release itself pins exactly and with
``pins/only-VERSION.txt``, where there is one. Nothing is resolved, since vllm's own requirements would bring another
torch and a gigabyte of kernels. About 80 s and 1.5 GB; done once, it only checks.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

TORCH = "2.13.0"
HERE = Path(__file__).parent
PINS = HERE / "pins"
# setuptools 81 has no pkg_resources, which vllm's build imports.
BUILD = (
    "setuptools==80.9.0",
    "wheel",
    "packaging",
    "setuptools-scm",
    "setuptools-rust",
    "semantic-version",
    "vcs-versioning",
)
# Pure Python, and their own requirements are there: pip would move pins for them.
UNRESOLVED = ("jaxtyping", "wadler-lindig")


def pip(*arguments: str, **variables: str) -> None:
    command = [sys.executable, "-m", "pip", "install", "-q", *arguments]
    subprocess.run(command, check=True, env=os.environ | variables, timeout=1800)


def frozen() -> dict[str, str]:
    """Everything installed, by name: what Python finds first, where an environment lies on another one."""
    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        found.setdefault(_canonical(distribution.metadata["Name"]), distribution.version)
    return found


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins_for(version: str, required: Sequence[str] = ()) -> dict[str, str]:
    """The version of every package that a release of vllm-omni needs, by canonical name.

    Args:
        version: the release.
        required: what the release's metadata requires; exact versions among it win over a neighbour's closure.
    """
    closures = sorted((_number(path.stem.removeprefix("pins-")), path) for path in PINS.glob("pins-*.txt"))
    number, closure = next((found for found in closures if found[0] >= _number(version)), closures[-1])
    pins = _read(closure)
    if number != _number(version):
        exact = (re.fullmatch(r"([\w.-]+)==([\w.]+)", need.replace(" ", "")) for need in required)
        pins |= {_canonical(need[1]): need[2] for need in exact if need and _canonical(need[1]) in pins}
    only = PINS / f"only-{version}.txt"
    return pins | (_read(only) if only.exists() else {})


def _read(path: Path) -> dict[str, str]:
    lines = [line.partition("==") for line in path.read_text().split()]
    return {_canonical(name): number for name, _, number in lines}


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))


def suite_needs() -> list[str]:
    """What this suite's own tests need besides torch."""
    project = tomllib.loads((HERE.parents[1] / "pyproject.toml").read_text())["project"]
    return [need for need in project["dependencies"] if not need.startswith(("torch", *UNRESOLVED))]


def install(version: str) -> None:
    pip(f"torch=={TORCH}")
    pip("--no-deps", f"vllm-omni=={version}")
    pins = pins_for(version, metadata.requires("vllm-omni") or ())
    pip("--no-deps", *(f"{name}=={number}" for name, number in pins.items()), *BUILD)
    pip(
        "--no-deps",
        "--no-build-isolation",
        "--no-binary",
        "vllm",
        f"vllm=={version}",
        VLLM_TARGET_DEVICE="empty",
        VLLM_VERSION_OVERRIDE=version,
    )
    before = frozen()
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        constraints.write("".join(f"{name}=={number}\n" for name, number in before.items() if name != "vllm"))
        constraints.flush()
        pip("-c", constraints.name, *suite_needs())
    pip("--no-deps", *UNRESOLVED)
    moved = {name: number for name, number in before.items() if frozen().get(name) != number}
    if moved:
        sys.exit(f"installing the suite's own needs moved pins: {moved}")


def main() -> None:
    version = sys.argv[-1].removeprefix("upstream-")  # As tox names its environments.
    if len(sys.argv) != 2 or not re.fullmatch(r"\d+(\.\w+)+", version):
        sys.exit("usage: install.py VERSION, a release of vllm-omni, 0.30.0 say")
    found = frozen()
    # The suite's own needs come last: where they are, all is.
    if (found.get("vllm-omni"), found.get("vllm")) != (version, version) or "wadler-lindig" not in found:
        install(version)
    print(f"vllm-omni {version} on torch {metadata.version('torch')}")


if __name__ == "__main__":
    main()
