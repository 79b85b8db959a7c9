"""Packs this Python's vllm and vllm-omni for a machine without a network: ``python tests/upstream/pack.py OUT_DIR``.

Run it in a Python that ``install.py`` has filled. It writes the two packages, which hold no compiled extension, as one
archive, and beside it wheels for Python 3.12 of what they import and a machine with PyTorch, transformers and pytest
lacks. There: unpack the archive, install the wheels into the same folder with ``pip --no-index --no-deps --target``,
and put that folder on PYTHONPATH.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
from importlib import metadata
from pathlib import Path

ARCHIVE = "vllm.tar.xz"
# What a rank was seen to import (sys.modules after a forward pass), less what PyTorch machines have.
WHEELS = (
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
PLATFORMS = ("2_35", "2_34", "2_31", "2_28", "2_27", "2_26", "2_24", "2_17", "2_12", "2_5")


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: pack.py OUT_DIR")
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    with tarfile.open(out / ARCHIVE, "w:xz", preset=6) as archive:
        for name in ("vllm", "vllm-omni"):
            root = Path(str(metadata.distribution(name).locate_file("")))
            for file in metadata.files(name) or ():
                if "__pycache__" not in file.parts and ".." not in file.parts:
                    archive.add(root / file, str(file))
    platforms = [option for number in PLATFORMS for option in ("--platform", f"manylinux_{number}_x86_64")]
    platforms += ["--platform", "manylinux2014_x86_64", "--platform", "manylinux1_x86_64", "--platform", "any"]
    wanted = [f"{name}=={metadata.version(name)}" for name in WHEELS if _installed(name)]
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", "3.12", "--implementation", "cp", *platforms, "-d", str(out), *wanted]
    subprocess.run(command, check=True, timeout=600)
    sizes = {file.name: file.stat().st_size for file in sorted(out.iterdir())}
    for name, size in sizes.items():
        print(f"{size / 1e6:7.2f} MB  {name}")
    print(f"{sum(sizes.values()) / 1e6:7.2f} MB in all, in {out}")


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    main()
