"""Which code a process runs: sources by their bytes, installed distributions by version, numerical libraries by size.

Bytes are read once for each state of a file, so that asking again costs milliseconds.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import metadata

from verify.environment.variables import other_variables

_OWN = __name__.partition(".")[0]
# What these compute, or the order in which they do, is in the bits.
_NUMERICAL = re.compile(
    r"lib(m|mvec|g?omp|iomp5|mkl_\w+|(scipy_)?openblas\w*|blas\w*|lapack\w*|sleef|dnnl|torch\w*|c10\w*|cublas\w*|cudnn\w*|cudart"
    r"|cufft|cusolver|cusparse\w*|curand|nccl|nvrtc|nvJitLink|triton|rocblas|hipblas\w*|MIOpen|rccl)[-.]"
)
# A file longer than this is told by its size alone.
_LARGEST = 1 << 24
_FOLDERS = {
    kind: tuple({os.path.realpath(sysconfig.get_path(name)) + os.sep for name in names})
    for kind, names in (("standard", ("stdlib", "platstdlib")), ("installed", ("purelib", "platlib")))
}
_INSTALLED = re.compile(r"[/\\](site|dist)-packages[/\\]")


@dataclass(frozen=True)
class Identity:
    """What one process runs.

    Attributes:
        sources: a digest of each loaded module that is neither Python's own nor installed, of verify, and of the
            packages of loop and target, by the module's name; a loop's file by the file's name.
        distributions: the version of each installed distribution of which a module is loaded.
        libraries: the size of each numerical library that is loaded.
        others: a short digest of each environment variable of which it is not known whether it matters. It stays in
            memory: documents show names only.
    """

    sources: Mapping[str, str] = field(default_factory=dict)
    distributions: Mapping[str, str] = field(default_factory=dict)
    libraries: Mapping[str, str] = field(default_factory=dict)
    others: Mapping[str, str] = field(default_factory=dict)


def identity(packages: Iterable[str] = ()) -> Identity:
    """What this process runs.

    Args:
        packages: modules that loop and target come from; all that is loaded of their packages is told by its bytes,
            installed or not.
    """
    tops = frozenset({_OWN, *(name.partition(".")[0] for name in packages)})
    files = [(name, getattr(module, "__file__", None)) for name, module in [*sys.modules.items()]]
    loaded = tuple((name, path if isinstance(path, str) else None) for name, path in files)
    digests = {name: _digest_of(path) for name, path in _source_files(loaded, tops)}
    sources = {name: digest for name, digest in digests.items() if digest}
    return Identity(sources, _distributions(loaded), _libraries(), other_variables(os.environ))


_Loaded = tuple[tuple[str, str | None], ...]


@lru_cache(maxsize=4)
def _source_files(loaded: _Loaded, tops: frozenset[str]) -> tuple[tuple[str, str], ...]:
    """The modules that are told by their bytes, each with its file."""
    found = {}
    for name, path in loaded:
        if path is None or not os.path.isabs(path) or name in ("__main__", "__mp_main__"):
            continue
        if name.partition(".")[0] in tops or not _is_installed(path):
            found[os.path.basename(path) if name.startswith("_loop_file_") else name] = path
    return tuple(sorted(found.items()))


@lru_cache(maxsize=16384)
def _is_installed(path: str) -> bool:
    """Whether a module is Python's own or belongs to an installed distribution."""
    real = os.path.realpath(path)
    return _INSTALLED.search(real) is not None or real.startswith(_FOLDERS["standard"] + _FOLDERS["installed"])


def _digest_of(path: str) -> str:
    try:
        status = os.stat(path)
    except OSError:
        return ""
    return _digest(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=16384)
def _digest(path: str, modified: int, size: int) -> str:
    del modified
    if size > _LARGEST:
        return f"{size} bytes"
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError:
        return ""


@lru_cache(maxsize=4)
def _distributions(loaded: _Loaded) -> dict[str, str]:
    tops = {name.partition(".")[0] for name, _ in loaded}
    if "torch" in tops:
        tops.add("nvidia")  # Its libraries are loaded, and never imported.
    names = {name for top in tops for name in _providers().get(top, ())}
    return {name: _version(name) for name in sorted(names)}


@lru_cache(maxsize=1)
def _providers() -> dict[str, set[str]]:
    """The distributions that bring each importable name, as ``importlib.metadata.packages_distributions``, in a tenth
    of its time: it makes an object of each of some ten thousand files.
    """
    found: dict[str, set[str]] = {}
    for distribution in metadata.distributions():
        name = distribution.metadata["Name"]
        for top in set(_TOP.findall(distribution.read_text("RECORD") or "")):
            found.setdefault(top, set()).add(name)
    return found


_TOP = re.compile(r"^(\w+)(?:/|\.py,|\.[\w-]+\.so,)", re.MULTILINE)


@lru_cache(maxsize=1024)
def _version(name: str) -> str:
    return metadata.version(name)


def _libraries() -> dict[str, str]:
    try:
        with open("/proc/self/maps") as maps:
            paths = {line[line.index("/") :].rstrip("\n") for line in maps if "/" in line and ".so" in line}
    except OSError:
        return {}
    found = {}
    for path in sorted(paths):
        name = os.path.basename(path)
        if _NUMERICAL.match(name):
            try:
                found[name] = f"{os.path.getsize(path)} bytes"
            except OSError:
                continue
    return found
