"""Uncompressed zip archives as trees of files: written in one pass, read entry by entry."""

import errno
import io
import os
import struct
import zipfile
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from dsgen.errors import DamagedError, reason_of
from dsgen.io.atomic import write_file
from dsgen.io.filesystem import LocalFiles, UrlFiles

_LOCAL_HEADER_BYTES = 30
_EXTRA_FIELD_BYTES = 64  # more than the extra field of a local header takes in practice
_REMEDY = "run dsgen repair, or remove it and run dsgen pack again"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time a zip entry can have


class ZipFiles:
    """Files in a zip archive whose entries are stored uncompressed; read in place, by any number of threads.

    Reading raises `FileNotFoundError` for an entry that does not exist, and `DamagedError` for a damaged file, for
    compressed entries, and for names that occur twice or point out of the archive.
    """

    def __init__(self, files: LocalFiles | UrlFiles, name: str):
        self._files, self._name = files, name

    def __str__(self) -> str:
        return f"{self._files}/{self._name}"

    def __reduce__(self) -> tuple[Any, ...]:
        return ZipFiles, (self._files, self._name)

    @cached_property
    def _entries(self) -> dict[str, tuple[int, int]]:
        """The offset of each entry's local header, and the bytes of its content."""
        archive = _ArchiveStream(self._files, self._name)
        try:
            with zipfile.ZipFile(io.BufferedReader(archive, 2**16)) as opened:
                entries = opened.infolist()
        except (zipfile.BadZipFile, NotImplementedError, ValueError, LookupError, EOFError, struct.error) as error:
            raise DamagedError(self, f"no readable zip file ({reason_of(error)})", _REMEDY) from error
        found: dict[str, tuple[int, int]] = {}
        for entry in entries:
            name, length = entry.filename, entry.file_size
            if entry.compress_type != zipfile.ZIP_STORED:
                reason = f"{name} is compressed, expected uncompressed entries"
                raise DamagedError(self, reason, "zip it again without compression (zip -0)")
            if name.startswith("/") or ".." in name.split("/") or "\\" in name or ":" in name:
                raise DamagedError(self, f"entry {name!r} points outside", _REMEDY)
            if name in found:
                raise DamagedError(self, f"entry {name!r} is in it twice", _REMEDY)
            if length != entry.compress_size or not 0 <= entry.header_offset <= archive.end - length:
                raise DamagedError(self, f"entry {name!r} is larger than the file has room for", _REMEDY)
            found[name] = entry.header_offset, length
        return found

    def read(self, name: str) -> bytes:
        """Return a whole entry."""
        if name not in self._entries:
            raise FileNotFoundError(errno.ENOENT, "no such entry", f"{self}/{name}")
        offset, length = self._entries[name]
        # one request for header and content: the exact length of the header is only known once it is read
        likely = _LOCAL_HEADER_BYTES + len(name.encode()) + _EXTRA_FIELD_BYTES
        content = self._files.read_range(self._name, offset, likely + length)
        if content[:4] != b"PK\x03\x04" or len(content) < _LOCAL_HEADER_BYTES:
            raise DamagedError(self, f"no entry {name!r} where its table of contents says", _REMEDY)
        name_length, extra_length = struct.unpack("<HH", content[26:30])
        start = _LOCAL_HEADER_BYTES + name_length + extra_length
        if start > likely:
            content, start = self._files.read_range(self._name, offset + start, length), 0
        if len(content) < start + length:
            raise DamagedError(self, f"entry {name!r} is cut short", _REMEDY)
        return content[start : start + length]

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """Return `length` bytes from `start` on; a negative `start` counts from the end."""
        content = self.read(name)
        start = max(0, len(content) + start) if start < 0 else start
        return content[start : start + length]

    def expect(self, name: str, start: int, length: int) -> None:  # noqa: ARG002
        """Have the system read an entry ahead, where it can; entries are read whole."""
        if name in self._entries:
            offset, entry_length = self._entries[name]
            self._files.expect(self._name, offset, _LOCAL_HEADER_BYTES + len(name) + entry_length)

    def sizes(self) -> dict[str, int]:
        """Return the bytes of every entry, in order of name."""
        return {name: length for name, (_, length) in sorted(self._entries.items())}

    def has(self, name: str) -> bool:
        """Return whether the entry exists."""
        return name in self._entries


class _ArchiveStream(io.RawIOBase):
    """The archive as a seekable stream, for `zipfile` to read the table of contents."""

    def __init__(self, files: LocalFiles | UrlFiles, name: str):
        self._files, self._name, self._position = files, name, 0
        self.end = files.child(name).path.stat().st_size if isinstance(files, LocalFiles) else files.sizes()[name]

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to an offset and return the position."""
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.end}[whence]
        if self._position < 0:
            raise ValueError("an offset before the start of the file")
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer from the position on; return the number of bytes read."""
        length = min(len(buffer), self.end - self._position)
        if length <= 0:
            return 0
        content = self._files.read_range(self._name, self._position, length)
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


def write_zip(path: Path, entries: Iterable[tuple[str, bytes]]) -> None:
    """Write a zip of uncompressed entries atomically; its bytes depend only on their names and contents."""
    with write_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries:
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.create_system, entry.external_attr = 3, 0o644 << 16  # made on Unix, rw-r--r--
            archive.writestr(entry, content)
