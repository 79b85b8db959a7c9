"""How output reaches the disk, whole or not at all; or standard output."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import sys
import tempfile
from pathlib import Path

import msgspec

from verify.errors import BadInput
from verify.report.documents.parts import Document

STANDARD_OUTPUT = "-"


def check_writable(path: str | Path) -> None:
    """Finds out before a long run whether its result can be written.

    Raises:
        BadInput: the folder does not exist or cannot be written to, or ``path`` is a folder.
    """
    target = Path(path)
    try:
        if target.is_dir():
            raise BadInput.of("the output file", str(path), "a file name", "it is a folder; name a file in it")
        if not target.parent.is_dir():
            raise BadInput.of("the output file", str(path), "a file in a folder that exists", "create the folder first")
        require_writable(target)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise BadInput.of(
            "the output file", str(path), "a file in a writable folder", f"choose another one ({why})"
        ) from None


def write_document(document: Document, path: str | Path) -> None:
    """Writes a document as JSON; to standard output where ``path`` is ``-``.

    Raises:
        BadInput: it cannot be written.
    """
    # Not msgspec's own encoder, which refuses names of files that are no text.
    write_text(path, json.dumps(msgspec.to_builtins(document), indent=1, allow_nan=False) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Writes a file, whole or not at all; to standard output where ``path`` is ``-``.

    Raises:
        BadInput: it cannot be written.
    """
    if str(path) == STANDARD_OUTPUT:
        sys.stdout.write(text)
    else:
        write_whole(path, text)


def write_whole(path: str | Path, text: str | bytes) -> None:
    """Writes ``text``, UTF-8, beside ``path`` and moves it there once it is complete. Pipes and devices are written to.

    Raises:
        BadInput: it cannot be written.
    """
    check_writable(path)
    target = Path(path)
    try:
        replace_file(target, text.encode() if isinstance(text, str) else text)
    except (OSError, ValueError) as error:
        raise BadInput.of("the output file", str(path), "a file that can be written", str(error)) from None


def require_writable(target: Path) -> None:
    """Finds out whether ``target`` can be written. A file is made where permissions do not tell: on a full disk.

    Raises:
        OSError, ValueError: it cannot.
    """
    with contextlib.suppress(FileNotFoundError):
        target.lstat()  # A name that no file system takes.
    if not os.access(target if _is_stream(target) else _behind_links(target).parent, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    if _is_stream(target):
        return
    folder = _behind_links(target).parent
    try:
        os.close(os.open(folder, os.O_TMPFILE | os.O_WRONLY))
    except OSError:  # Not every file system has files without a name.
        descriptor, name = tempfile.mkstemp(prefix=".verify-", dir=folder)
        os.close(descriptor)
        os.unlink(name)


def replace_file(path: Path, content: bytes) -> None:
    """Writes ``content`` beside ``path`` and moves it there once it is complete. Pipes and devices are written to.

    Raises:
        OSError, ValueError: it cannot be written.
    """
    if _is_stream(path):
        path.write_bytes(content)
        return
    target = _behind_links(path)
    temporary = target.with_name(f".verify-{secrets.token_hex(8)}")
    try:
        _create(temporary, content)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _create(path: Path, content: bytes) -> None:
    """Makes a file that has no name until it is complete, where the file system can: a killed writer leaves nothing."""
    try:
        descriptor = os.open(path.parent, os.O_TMPFILE | os.O_WRONLY, 0o666)
    except OSError:
        path.write_bytes(content)
        return
    with open(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        # The folder's descriptor is not looked at; given one, Python follows the link under /proc.
        os.link(f"/proc/self/fd/{descriptor}", path, src_dir_fd=descriptor, follow_symlinks=True)


def _behind_links(path: Path) -> Path:
    """What a link points at is replaced, not the link."""
    return Path(os.path.realpath(path))


def _is_stream(path: Path) -> bool:
    """Whether ``path`` is a pipe or a device, which must not be replaced by a file: ``/dev/stdout``."""
    return path.exists() and not path.is_file()
