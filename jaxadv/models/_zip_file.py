"""Zip archives with members read in parts, safe from decompression bombs."""

import io
import zipfile
import zlib
from typing import Any

from ._stored import FileBytes

_MAX_DIRECTORY = 1 << 20  # bytes of the table of contents
_MAX_MEMBERS = 10_000
_LOCAL_HEADER = 30
_CHUNK = 1 << 20


class _Frugal(io.RawIOBase):
    """The file as `zipfile` reads its table of contents; rejects an enormous one."""

    def __init__(self, source: FileBytes) -> None:
        self._source, self._at, self._left = source, 0, _MAX_DIRECTORY

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._source.size)[whence]
        if self._at < 0:
            raise OSError("before the beginning")
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._source.size - self._at)
        size = left if size is None or size < 0 else min(size, left)
        self._left -= size
        if self._left < 0:
            raise ValueError("an archive with an enormous table of contents")
        raw = self._source.read(self._at, size)
        self._at += size
        return raw


class Archive:
    """The members of a zip archive.

    Args:
      source: the file.

    Attributes:
      names: names of the members, in archive order.

    Raises:
      ValueError: if the archive is truncated, has far too many members, or duplicate names.
    """

    def __init__(self, source: FileBytes) -> None:
        self._source = source
        try:
            members = zipfile.ZipFile(_Frugal(source)).infolist()  # pyright: ignore
        except (zipfile.BadZipFile, NotImplementedError, OSError, OverflowError) as error:
            raise ValueError(f"truncated, download it again ({error})") from error
        self._members = {member.filename: member for member in members}
        self.names = list(self._members)
        if len(members) > _MAX_MEMBERS or len(self._members) < len(members):
            raise ValueError(
                f"an archive of {len(members)} members with {len(self._members)} names"
            )
        if sum(member.compress_size for member in members) > source.size:
            raise ValueError(
                "its members overlap or are missing; the file is truncated, download it again"
            )
        self._checked: set[str] = set()

    def size(self, name: str) -> int:
        """Size of a member in bytes, from the table of contents."""
        return self._members[name].file_size

    def is_compressed(self, name: str) -> bool:
        """Whether a member is compressed."""
        return self._members[name].compress_type != zipfile.ZIP_STORED

    def read(self, name: str, limit: int) -> bytes:
        """A whole member of at most ``limit`` bytes; a compressed one is inflated."""
        size = self.size(name)
        if size > limit:
            raise ValueError(f"{name} has {size} bytes, more than the limit of {limit}")
        if not self.is_compressed(name):
            return self.read_part(name, 0, size)
        raw = self.peek(name, size + 1)
        if len(raw) != size or zlib.crc32(raw) != self._members[name].CRC:
            raise ValueError(f"Bad CRC-32 of {name}; the file is truncated, download it again")
        return raw

    def peek(self, name: str, length: int) -> bytes:
        """The first bytes of a member, unverified; a compressed one is inflated that far."""
        member, begin = self._members[name], self._begin(name)
        if not self.is_compressed(name):
            return self._source.read(begin, min(length, member.file_size))
        if member.compress_type != zipfile.ZIP_DEFLATED:
            raise ValueError(f"{name} is compressed in an unusual way")
        inflate, raw = zlib.decompressobj(-zlib.MAX_WBITS), bytearray()
        try:
            for at in range(0, member.compress_size, _CHUNK):
                packed = self._source.read(begin + at, min(_CHUNK, member.compress_size - at))
                raw += inflate.decompress(packed, length - len(raw))
                if len(raw) >= length or inflate.eof:
                    break
        except zlib.error as error:
            raise ValueError(f"{name} is truncated, download the file again ({error})") from error
        return bytes(raw)

    def read_part(self, name: str, start: int, length: int) -> bytes:
        """Part of an uncompressed member; the checksum covers the whole member."""
        member, begin = self._members[name], self._begin(name)
        if self.is_compressed(name) or member.compress_size != member.file_size:
            raise ValueError(f"{name} is compressed, but torch.save never compresses")
        if start < 0 or length < 0 or start + length > member.file_size:
            raise ValueError(f"{name} ends too early")
        if name not in self._checked:
            if self._source.crc32(begin, member.file_size) != member.CRC:
                raise ValueError(f"Bad CRC-32 of {name}; the file is truncated, download it again")
            self._checked.add(name)
        return self._source.read(begin + start, length)

    def _begin(self, name: str) -> int:
        """Offset of a member's data."""
        member: Any = self._members[name]
        header = self._source.read(member.header_offset, _LOCAL_HEADER)
        if header[:4] != b"PK\x03\x04" or member.flag_bits & 1:
            raise ValueError(f"{name} is encrypted or has no header; the file is truncated")
        lengths = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
        return member.header_offset + _LOCAL_HEADER + sum(lengths)
