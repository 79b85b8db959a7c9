"""Installs a vllm-omni and its vllm into this Python without compiling: ``python tests/upstream/install.py VERSION``.

vllm is built from its source distribution for the target device "empty", which has no extension. Everything else comes
from ``pins/``: full closures that worked, not minimal ones. Nothing is resolved, since vllm's own requirements would
bring another torch and a gigabyte of kernels. About 80 s and 1.5 GB; done once, it only checks.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import tomllib
from importlib import metadata
from pathlib import Path

TORCH = "2.13.0"
HERE = Path(__file__).parent
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
    """Everything installed, by name."""
    return {found.metadata["Name"]: found.version for found in metadata.distributions()}


def suite_needs() -> list[str]:
    """What this suite's own tests need besides torch."""
    project = tomllib.loads((HERE.parents[1] / "pyproject.toml").read_text())["project"]
    return [need for need in project["dependencies"] if not need.startswith(("torch", *UNRESOLVED))]


def install(version: str) -> None:
    pip(f"torch=={TORCH}")
    pip("--no-deps", "-r", str(HERE / "pins" / f"pins-{version}.txt"), *BUILD)
    pip(
        "--no-deps",
        "--no-build-isolation",
        "--no-binary",
        "vllm",
        f"vllm=={version}",
        VLLM_TARGET_DEVICE="empty",
        VLLM_VERSION_OVERRIDE=version,
    )
    pip("--no-deps", f"vllm-omni=={version}")
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
    pins = {path.stem.removeprefix("pins-"): path for path in (HERE / "pins").glob("pins-*.txt")}
    if len(sys.argv) != 2 or sys.argv[1] not in pins:
        sys.exit(f"usage: install.py VERSION, one of {', '.join(sorted(pins))}")
    version = sys.argv[1]
    if frozen().get("vllm-omni") != version or frozen().get("wadler-lindig") is None:
        install(version)
    print(f"vllm-omni {version} on torch {metadata.version('torch')}")


if __name__ == "__main__":
    main()
