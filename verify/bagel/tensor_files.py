"""Safetensors and JSON files that a user names: checked before they are opened, and shown escaped.

Files are mapped read-only: a mapping that could be written to counts as memory, and a host with less of it than the
file has bytes refuses that. No other format is opened: nothing is unpickled.
"""

from __future__ import annotations

import json
import mmap
import os
import stat
import warnings
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from verify.errors import BadInput

# Only for these dtypes is a weight the number that is stored: quantised ones need scales that this model does not read.
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}

# The index of a model with a thousand tensors takes a tenth of a megabyte.
_MAX_JSON_BYTES = 1 << 24


class TensorFiles:
    """The tensors of several safetensors files, open for as long as ``stack`` is; opening reads headers only.

    ``what``: what the files are to the user.

    Attributes:
        shapes: of every tensor, by name.
        dtypes: of every tensor, by name, as safetensors spells them (``BF16``).

    Raises:
        BadInput: a file is no whole safetensors file, or two files hold one name.
    """

    def __init__(self, files: Iterable[Path], stack: ExitStack, what: str = "checkpoint") -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self._data: dict[str, memoryview] = {}
        for path in files:
            header, data = _opened(path, stack, what)
            for name, told in header.items():
                if name in self._data:
                    raise BadInput.of(
                        "checkpoint tensor", readable(name), "one file that holds it", f"remove it from {path.name}"
                    )
                self.shapes[name] = tuple(told["shape"])
                self.dtypes[name] = told["dtype"]
                self._data[name] = data[slice(*told["data_offsets"])]

    def read(self, name: str) -> Tensor:
        """One tensor of a dtype in ``DTYPES``, a view of the mapped file: to be copied from, never written to."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given buffer is not writable")
            flat = torch.frombuffer(self._data[name], dtype=DTYPES[self.dtypes[name]])
        return flat.view(self.shapes[name])

    def bytes_of(self, name: str) -> memoryview:
        """The bytes of one tensor, as the file has them."""
        return self._data[name]


def _opened(path: Path, stack: ExitStack, what: str) -> tuple[dict[str, Any], memoryview]:
    """What a file's header says of each tensor, and the file's data, mapped for as long as anybody looks at it."""
    try:
        # NumPy's reader maps read-only, and only opens the file: that its header is right is the library's to judge.
        stack.enter_context(safe_open(path, framework="np"))
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (SafetensorError, OSError, ValueError) as error:
        raise BadInput.of(
            what, str(path), "a whole safetensors file", f"{readable(str(error))}; fetch it again"
        ) from None
    header.pop("__metadata__", None)
    return header, memoryview(mapped)[8 + length :]


def folder(path: Path, expected: str) -> list[str]:
    """The names in a folder, sorted.

    Raises:
        BadInput: ``path`` is no folder, or cannot be read.
    """
    try:
        return sorted(os.listdir(path))
    except (OSError, ValueError) as error:
        raise BadInput.of("checkpoint", str(path), expected, f"{_reason(error)}; check the path") from None


def regular_file(path: Path, what: str = "checkpoint") -> Path:
    """``path``, if a regular file is there; opening a pipe would wait for ever.

    Raises:
        BadInput: there is none.
    """
    reason = "it is no regular file"
    try:
        if stat.S_ISREG(os.stat(path).st_mode):
            return path
    except (OSError, ValueError) as error:
        reason = _reason(error)
    raise BadInput.of(what, str(path.parent), f"a folder with the file {readable(path.name)}", reason)


def json_object(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        BadInput: there is no regular file, or it holds something else, or more than 16 MiB.
    """
    reason = f"it has more than {_MAX_JSON_BYTES >> 20} MiB"
    try:
        with regular_file(path).open("rb") as file:
            text = file.read(_MAX_JSON_BYTES + 1)
        if len(text) <= _MAX_JSON_BYTES:
            loaded = json.loads(text)
            if isinstance(loaded, dict):
                return loaded
            reason = f"it holds a {type(loaded).__name__}"
    except (OSError, ValueError, RecursionError) as error:
        reason = _reason(error)
    raise BadInput.of("checkpoint file", str(path), "a JSON object", f"{reason}; fetch it again")


def readable(text: str, limit: int = 120) -> str:
    """``text`` with what could garble a terminal escaped, cut to ``limit`` characters."""
    escaped = text.encode("unicode_escape").decode("ascii")
    return escaped if len(escaped) <= limit else escaped[: limit - 3] + "..."


def _reason(error: Exception) -> str:
    """Why, without the path, which the message names anyway."""
    return str(error.strerror) if isinstance(error, OSError) and error.strerror else readable(str(error))
