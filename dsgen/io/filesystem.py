"""Trees of files in a local folder or at any URL that fsspec supports (s3://, gs://, memory:// ...).

Names are relative, with slashes. Every write is atomic: on a disk by renaming, in an object store because a PUT is.
A tree can be pickled, and used after a fork: each process opens its own connections. Credentials are found as usual for
the protocol's library, for s3:// in the AWS environment variables and profiles.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from dsgen.errors import DsgenError, InvalidValueError, MissingPackageError, reason_of
from dsgen.io.atomic import write_bytes

_EXTRAS = {"s3": "s3", "s3a": "s3"}  # protocol -> extra of dsgen that installs its package
_HASH_BLOCK_BYTES = 2**22


class Files(Protocol):
    """The tree of files that a store is read from."""

    def read(self, name: str) -> bytes:
        """Return a whole file; raise `FileNotFoundError` if it does not exist."""

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """Return `length` bytes from `start` on; a negative `start` counts from the end."""

    def sizes(self) -> dict[str, int]:
        """Return the bytes of every file of the tree, in order of name."""

    def has(self, name: str) -> bool:
        """Return whether the file exists."""


def is_url(location: Path | str) -> bool:
    """Return whether a location is a URL rather than a local path."""
    return "://" in str(location)


def open_files(location: Path | str) -> "LocalFiles | UrlFiles":
    """Open a local folder or a URL, which need not exist yet."""
    return UrlFiles(str(location)) if is_url(location) else LocalFiles(Path(location))


class LocalFiles:
    """The files below a local folder."""

    def __init__(self, path: Path):
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def child(self, name: str) -> "LocalFiles":
        """Return the tree below one of the folders."""
        return LocalFiles(self.path / name)

    def read(self, name: str) -> bytes:
        """Return a whole file."""
        return (self.path / name).read_bytes()

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """Return `length` bytes from `start` on; a negative `start` counts from the end."""
        descriptor = os.open(f"{self.path}{os.sep}{name}", os.O_RDONLY | getattr(os, "O_BINARY", 0))
        try:
            if start < 0:
                start = max(0, os.fstat(descriptor).st_size + start)
            if hasattr(os, "pread"):
                return os.pread(descriptor, length, start)
            os.lseek(descriptor, start, os.SEEK_SET)
            return os.read(descriptor, length)
        finally:
            os.close(descriptor)

    def sizes(self) -> dict[str, int]:
        """Return the bytes of every file, in order of name."""
        found: dict[str, int] = {}
        for folder, _, names in os.walk(self.path):
            relative = Path(folder).relative_to(self.path).as_posix()
            prefix = "" if relative == "." else relative + "/"
            for name in names:
                found[prefix + name] = os.stat(os.path.join(folder, name)).st_size
        return dict(sorted(found.items()))

    def top(self) -> list[str]:
        """List the names of the files and folders at the top level."""
        return sorted(os.listdir(self.path)) if self.path.is_dir() else []

    def has(self, name: str) -> bool:
        """Return whether the file exists."""
        return (self.path / name).is_file()

    def write(self, name: str, content: bytes) -> None:
        """Write a file atomically, creating its folders; two processes may write the same one at once."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content, apart=True)

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with everything in it, if it exists."""
        path = self.path / name
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


class UrlFiles:
    """The files below a URL, accessed through fsspec."""

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self._opened: tuple[int, Any, str] | None = None

    def __str__(self) -> str:
        return self.url

    def __reduce__(self) -> tuple[Any, ...]:
        return UrlFiles, (self.url,)

    def _fs(self) -> tuple[Any, str]:
        """The file system and the path in it, opened once per process: connections do not survive a fork."""
        if self._opened is None or self._opened[0] != os.getpid():
            protocol = self.url.partition("://")[0]
            try:
                import fsspec

                options = {"use_listings_cache": False, "skip_instance_cache": False}
                fs, path = fsspec.core.url_to_fs(self.url, **options)
            except ImportError as error:
                extra = _EXTRAS.get(protocol)
                remedy = (
                    f"pip install 'dsgen[{extra}]'" if extra else f"install the package that fsspec needs ({error})"
                )
                reason = f"{protocol}:// needs a package that is not installed"
                raise MissingPackageError(self.url, reason, remedy) from error
            except ValueError as error:
                raise InvalidValueError(self.url, f"not a URL that can be used ({error})", "use another") from error
            self._opened = os.getpid(), fs, path.rstrip("/")
        return self._opened[1], self._opened[2]

    def child(self, name: str) -> "UrlFiles":
        """Return the tree below one of the folders."""
        return UrlFiles(f"{self.url}/{name}")

    def read(self, name: str) -> bytes:
        """Return a whole file."""
        fs, root = self._fs()
        with _translate_errors(self.url):
            return bytes(fs.cat_file(f"{root}/{name}"))

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """Return `length` bytes from `start` on; a negative `start` counts from the end."""
        fs, root = self._fs()
        end = None if start < 0 else start + length
        with _translate_errors(self.url):
            return bytes(fs.cat_file(f"{root}/{name}", start=start, end=end))[:length]

    def sizes(self) -> dict[str, int]:
        """Return the bytes of every file, in order of name."""
        fs, root = self._fs()
        with _translate_errors(self.url):
            try:
                found = fs.find(root, detail=True)
            except FileNotFoundError:
                return {}
        return {name[len(root) + 1 :]: entry["size"] for name, entry in sorted(found.items())}

    def top(self) -> list[str]:
        """List the names of the files and folders at the top level."""
        fs, root = self._fs()
        with _translate_errors(self.url):
            try:
                return sorted({name.rstrip("/")[len(root) + 1 :] for name in fs.ls(root, detail=False)} - {""})
            except FileNotFoundError:
                return []

    def has(self, name: str) -> bool:
        """Return whether the file exists."""
        fs, root = self._fs()
        with _translate_errors(self.url):
            return bool(fs.isfile(f"{root}/{name}"))

    def write(self, name: str, content: bytes) -> None:
        """Write a file atomically."""
        fs, root = self._fs()
        with _translate_errors(self.url, missing=True):
            fs.pipe_file(f"{root}/{name}", content)

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with everything in it, if it exists."""
        fs, root = self._fs()
        with _translate_errors(self.url):
            try:
                fs.rm(f"{root}/{name}", recursive=True)
            except FileNotFoundError:
                return


def hash_tree(files: Files, sizes: dict[str, int], workers: int) -> Iterator[tuple[str, str | None]]:
    """Yield the name and SHA-256 of every file in `sizes`, in that order; None for a file that cannot be read."""

    def digest(name: str) -> str | None:
        sha256 = hashlib.sha256()
        try:
            for start in range(0, sizes[name], _HASH_BLOCK_BYTES):
                sha256.update(files.read_range(name, start, min(_HASH_BLOCK_BYTES, sizes[name] - start)))
        except OSError:
            return None
        return sha256.hexdigest()

    with ThreadPoolExecutor(workers) as pool:
        yield from zip(sizes, pool.map(digest, sizes), strict=True)


@contextmanager
def _translate_errors(url: str, *, missing: bool = False) -> Iterator[None]:
    """Turn the errors of a remote file system into a `DsgenError` with the URL.

    `FileNotFoundError` passes, since callers expect it of a missing file, unless `missing` says to translate it too.
    """
    try:
        yield
    except DsgenError:
        raise
    except Exception as error:
        if isinstance(error, FileNotFoundError) and not missing:
            raise
        raise DsgenError(
            url,
            f"cannot be reached or used ({reason_of(error)})",
            "check the address, the endpoint (--endpoint or AWS_ENDPOINT_URL) and the credentials",
        ) from error
