"""Uncompressed zip files as trees of files: written in one pass, read entry by entry."""

import io
import os
import struct
import zipfile
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from dsgen.io.atomic import partial_path
from dsgen.io.filesystem import LocalFiles, UrlFiles

_LOCAL_HEADER = 30
_EPOCH = (1980, 1, 1, 0, 0, 0)


class ZipFiles:
    """Files inside a zip archive whose entries are stored as they are, read in place and by any number of threads."""

    def __init__(self, files: LocalFiles | UrlFiles, name: str):
        self._files, self._name = files, name

    def __str__(self) -> str:
        return f"{self._files}/{self._name}"

    def __reduce__(self) -> tuple[Any, ...]:
        return ZipFiles, (self._files, self._name)

    @cached_property
    def _entries(self) -> dict[str, tuple[int, int]]:
        """Where each entry's local header begins, and the bytes it holds."""
        archive = io.BufferedReader(_Ranges(self._files, self._name), 2**16)
        with zipfile.ZipFile(archive) as opened:
            packed = [entry.filename for entry in opened.infolist() if entry.compress_type != zipfile.ZIP_STORED]
            if packed:
                raise ValueError(f"{packed[0]} is compressed, expected entries stored as they are")
            return {entry.filename: (entry.header_offset, entry.file_size) for entry in opened.infolist()}

    def read(self, name: str) -> bytes:
        """Return a whole entry."""
        if name not in self._entries:
            raise FileNotFoundError(f"{self}: no entry {name}")
        offset, length = self._entries[name]
        # one request for header and content; the header's own extra field is short, or empty
        around = _LOCAL_HEADER + len(name.encode()) + 64
        content = self._files.read_range(self._name, offset, around + length)
        name_length, extra_length = struct.unpack("<HH", content[26:30])
        start = _LOCAL_HEADER + name_length + extra_length
        return content[start : start + length]

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """Return `length` bytes from `start` on; a negative `start` counts from the end."""
        content = self.read(name)
        start = max(0, len(content) + start) if start < 0 else start
        return content[start : start + length]

    def sizes(self) -> dict[str, int]:
        """List every entry with its bytes, in order of name."""
        return {name: length for name, (_, length) in sorted(self._entries.items())}

    def has(self, name: str) -> bool:
        """Say whether there is such an entry."""
        return name in self._entries


class _Ranges(io.RawIOBase):
    """A file of a tree as a seekable stream, for `zipfile` to read the table of contents."""

    def __init__(self, files: LocalFiles | UrlFiles, name: str):
        self._files, self._name, self._at = files, name, 0
        self._end = files.child(name).path.stat().st_size if isinstance(files, LocalFiles) else files.sizes()[name]

    def readable(self) -> bool:
        """It is for reading."""
        return True

    def seekable(self) -> bool:
        """It can go anywhere."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place."""
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._end}[whence]
        return self._at

    def tell(self) -> int:
        """Say where it is."""
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Read on."""
        length = min(len(buffer), self._end - self._at)
        if length <= 0:
            return 0
        content = self._files.read_range(self._name, self._at, length)
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


def write_zip(path: Path, entries: Iterable[tuple[str, bytes]]) -> None:
    """Write a zip of stored entries whole or not at all; the bytes depend on names and contents alone."""
    unfinished = partial_path(path)
    try:
        with unfinished.open("wb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                for name, content in entries:
                    entry = zipfile.ZipInfo(name, _EPOCH)
                    entry.create_system, entry.external_attr = 3, 0o644 << 16
                    archive.writestr(entry, content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
