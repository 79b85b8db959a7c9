"""Packs this Python's vllm and vllm-omni for a GPU without a network: ``python tests/upstream/pack.py OUT_DIR``.

Run it in a Python that ``install.py`` has filled. It writes ``upstream-VERSION.tar.xz``: a folder for PYTHONPATH that
holds the two packages, which have no compiled extension, and for Python 3.12 on x86-64 what they import and a machine
with PyTorch, transformers and pytest lacks. ``on_gpu.sh`` unpacks it there and runs the suite.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib import metadata
from pathlib import Path

PACKED = ("vllm", "vllm-omni")
# What a rank was seen to import (sys.modules after a forward pass), less what PyTorch machines have.
LACKING = (
    "annotated-types",
    "apache-tvm-ffi",
    "cache_dit",
    "cachetools",
    "cbor2",
    "diffusers",
    "fastapi",
    "gguf",
    "httpcore2",
    "httpx2",
    "llguidance",
    "msgspec",
    "openai",
    "openai-harmony",
    "opentelemetry-api",
    "partial-json-parser",
    "pybase64",
    "pydantic",
    "pydantic_core",
    "pyzmq",
    "sniffio",
    "starlette",
    "truststore",
    "typing-inspection",
    "xgrammar",
)
# There in another major version than vllm-omni before 0.22 is written for.
TOO_NEW = {"transformers": 5, "huggingface_hub": 1, "tokenizers": 1}
GLIBC = ("2_35", "2_34", "2_31", "2_28", "2_27", "2_26", "2_24", "2_17", "2_12", "2_5")


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: pack.py OUT_DIR")
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    archive = out / f"upstream-{metadata.version('vllm-omni')}.tar.xz"
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder)
        install_for_the_gpu(site)
        for name in PACKED:
            copy_package(name, site)
        with tarfile.open(archive, "w:xz", preset=9) as tar:
            tar.add(site, ".")
    print(f"{archive.stat().st_size / 2**20:.1f} MiB: {archive}")


def install_for_the_gpu(site: Path) -> None:
    """Puts the other packages into ``site``, in the versions that this Python has."""
    installed = {name: _version(name) for name in (*LACKING, *TOO_NEW)}
    old = [name for name, major in TOO_NEW.items() if int((installed[name] or "99").partition(".")[0]) < major]
    # Tokenizers has no major version: it belongs to the transformers it came with.
    old = old if "transformers" in old else []
    wanted = [f"{name}=={installed[name]}" for name in (*LACKING, *old) if installed[name]]
    platforms = [f"manylinux_{number}_x86_64" for number in GLIBC] + ["manylinux2014_x86_64", "manylinux1_x86_64"]
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-compile", "--only-binary=:all:"]
    command += ["--python-version", "3.12", "--implementation", "cp", "--target", str(site)]
    command += [option for platform in (*platforms, "any") for option in ("--platform", platform)]
    subprocess.run([*command, *wanted], check=True, timeout=900)


def copy_package(name: str, site: Path) -> None:
    """Copies an installed package's files, bytecode and commands left out."""
    root = Path(str(metadata.distribution(name).locate_file("")))
    for file in metadata.files(name) or ():
        if "__pycache__" not in file.parts and ".." not in file.parts:
            (site / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / file, site / file)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
