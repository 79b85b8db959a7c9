"""How output reaches the disk: whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import tempfile
from pathlib import Path


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
