"""Reads members of archives and folders, and extracts archives safely."""

import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Collection
from pathlib import Path, PurePosixPath, PureWindowsPath

from ._dataset import DataError

# Exceptions the standard library raises for a damaged or truncated .tar.gz.
_BLOCK = 2**20
_MIN_ROOM, _MAX_GROWTH = 2**30, 20  # limit on the members' total size
_TORN = (tarfile.TarError, EOFError, zlib.error, OSError)
# The largest member of any archive read here is 47 MB.
_MAX_MEMBER_BYTES = 512 * 2**20
_FRESH = "Delete it and download it again (an interrupted download looks like this)"
_UNSAFE = "Nothing was written; do not use this archive, download the official one"


def read_members(path: Path, names: Collection[str]) -> dict[str, bytes]:
    """Reads files by their base name from a folder or a tar archive, without extracting.

    Args:
      path: a folder with the files, or a tar archive (compressed or not) with them in any folder.
      names: base names of the wanted files.

    Returns:
      Content by base name.

    Raises:
      DataError: if the archive is truncated or unsafe, or a file is missing or duplicated.
    """
    if path.is_dir():
        return {name: read_file(path / name) for name in names}
    content: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                _check_member(member, path)
                name = PurePosixPath(member.name).name
                if name not in names or not member.isfile():
                    continue
                if name in content:
                    raise DataError(path, f"contains {name!r} twice", _UNSAFE)
                if member.size > _MAX_MEMBER_BYTES:
                    raise DataError(path, f"{name!r} claims to have {member.size} bytes", _UNSAFE)
                file = archive.extractfile(member)
                assert file is not None  # None only for members that are not files, excluded above.
                content[name] = file.read()
                if len(content[name]) != member.size:
                    raise DataError(path, f"truncated inside {name!r}", _FRESH)
    except _TORN as error:
        raise DataError(path, f"truncated or not a tar archive ({error})", _FRESH) from error
    if missing := sorted(set(names) - set(content)):
        raise DataError(path, f"{', '.join(missing)} not found in it", _FRESH)
    return content


def read_file(path: Path) -> bytes:
    """The content of a file, or a `DataError` that says why it can't be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            path, f"cannot be read ({error.strerror})", "Put the file there or fix its permissions"
        ) from error


def extract(archive: str | Path, folder: str | Path) -> list[Path]:
    """Extracts a tar archive into `folder`, all or nothing.

    Every member is checked before anything is written; the files are then written to a
    temporary folder with Python's "data" filter and moved into place at the end.

    Args:
      archive: a tar archive, compressed or not.
      folder: where its top-level entries go; created if needed.

    Returns:
      Paths of the top-level entries.

    Raises:
      DataError: if a member has an absolute path, points outside the folder, or is a link or a
        device; if the archive is truncated; if an entry already exists (it is left unchanged).
    """
    archive, folder = Path(archive), Path(folder)
    if not archive.is_file():
        raise DataError(archive, "is not a file", "Give the path of a tar archive")
    try:
        with tarfile.open(archive) as file:
            room = max(_MIN_ROOM, _MAX_GROWTH * archive.stat().st_size)
            members, total = [], 0
            for member in file:
                _check_member(member, archive)
                members.append(member)
                total += member.size
                if total > room:
                    raise DataError(archive, f"contains more than {room} bytes of files", _UNSAFE)
            tops = sorted({part for m in members for part in PurePosixPath(m.name).parts[:1]})
            for top in tops:
                if (folder / top).exists():
                    raise DataError(
                        folder / top, "exists already", "Move it away to extract the archive again"
                    )
            folder.mkdir(parents=True, exist_ok=True)
            # On the destination's file system, so that the final move is a rename.
            with tempfile.TemporaryDirectory(dir=folder, suffix=".tmp") as temporary:
                file.extractall(temporary, filter="data")
                # Read to the end, where a compressed archive stores its checksum.
                while file.fileobj is not None and file.fileobj.read(_BLOCK):
                    pass
                return [
                    Path(shutil.move(os.path.join(temporary, top), folder / top)) for top in tops
                ]
    except _TORN as error:
        # A full or read-only disk sets errno; a damaged archive does not.
        full = isinstance(error, OSError) and error.errno is not None
        remedy = "Free some space or choose another folder" if full else _FRESH
        raise DataError(archive, f"cannot be extracted to {folder} ({error})", remedy) from error


def _check_member(member: tarfile.TarInfo, archive: Path) -> None:
    path, windows = PurePosixPath(member.name), PureWindowsPath(member.name)
    if path.is_absolute() or windows.drive or windows.root:
        problem = "has an absolute path"
    elif ".." in windows.parts:  # splits on both kinds of slash
        problem = "points outside the folder it is extracted to"
    elif member.issym() or member.islnk():
        problem = f"is a link to {member.linkname!r}"
    elif not (member.isfile() or member.isdir()):
        problem = "is a device or another special file"
    else:
        return
    raise DataError(archive, f"member {member.name!r} {problem}", _UNSAFE)
