"""Atomic file writes."""

import os
import pathlib
import re
import secrets
from collections.abc import Callable
from typing import BinaryIO

_PARTIAL = r"\.[0-9a-f]{16}\.partial"


def write_atomically(path: os.PathLike | str, write: Callable[[BinaryIO], object]) -> None:
    """Writes a file under a temporary name, flushes it to disk and renames it.

    A killed process or a full disk leaves either the old file or the new one. The temporary name is
    unique, so that writers do not collide.

    Args:
        path: path of the file; its folder must exist.
        write: writes the content to a binary file.

    Raises:
        OSError: if it cannot be written; nothing is left behind.

    Example:
        >>> import tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "weights.bin"
        >>> write_atomically(path, lambda file: file.write(b"1234"))
        >>> path.read_bytes()
        b'1234'
    """
    path = pathlib.Path(path)
    partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}.partial")
    try:
        with open(partial, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def is_partial(name: str, of: str) -> bool:
    """Whether a file name is a temporary one of :func:`write_atomically`.

    Args:
        name: the file's name.
        of: regular expression for the final names.
    """
    return re.fullmatch(f"(?:{of}){_PARTIAL}", name) is not None


def _sync_folder(folder: pathlib.Path) -> None:
    """Makes the rename itself durable, where folders can be opened (not on Windows)."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass  # some network file systems refuse; the file itself is on disk
    finally:
        os.close(handle)
