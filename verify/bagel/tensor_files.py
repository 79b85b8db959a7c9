"""Safetensors and JSON files that a user names: checked before they are opened, and shown escaped.

Tensors are mapped into memory by safetensors and read one at a time. No other format is opened: nothing is unpickled.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from verify.errors import BadInput

# The index of a model with a thousand tensors takes a tenth of a megabyte.
_MAX_JSON_BYTES = 1 << 24


class TensorFiles:
    """The tensors of several safetensors files, open for as long as ``stack`` is; opening reads headers only.

    Attributes:
        shapes: of every tensor, by name.
        dtypes: of every tensor, by name, as safetensors spells them (``BF16``).

    Raises:
        BadInput: a file is no whole safetensors file, or two files hold one name.
    """

    def __init__(self, files: Iterable[Path], stack: ExitStack) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self._files: dict[str, Any] = {}
        for path in files:
            try:
                file = stack.enter_context(safe_open(path, framework="pt", device="cpu"))
            except (SafetensorError, OSError) as error:
                raise BadInput.of(
                    "checkpoint", str(path), "a whole safetensors file", f"{readable(str(error))}; fetch it again"
                ) from None
            names: list[str] = file.keys()
            for name in names:
                if name in self._files:
                    raise BadInput.of(
                        "checkpoint tensor", readable(name), "one file that holds it", f"remove it from {path.name}"
                    )
                header = file.get_slice(name)
                self.shapes[name] = tuple(header.get_shape())
                self.dtypes[name] = header.get_dtype()
                self._files[name] = file

    def read(self, name: str) -> Tensor:
        """One tensor, a view of the mapped file."""
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor


def folder(path: Path, expected: str) -> list[str]:
    """The names in a folder, sorted.

    Raises:
        BadInput: ``path`` is no folder, or cannot be read.
    """
    try:
        return sorted(os.listdir(path))
    except (OSError, ValueError) as error:
        raise BadInput.of("checkpoint", str(path), expected, f"{_reason(error)}; check the path") from None


def regular_file(path: Path) -> Path:
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
    raise BadInput.of("checkpoint", str(path.parent), f"a folder with the file {readable(path.name)}", reason)


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
