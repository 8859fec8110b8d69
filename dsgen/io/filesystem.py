"""A tree of files, wherever it is: a local folder, any URL that fsspec takes (s3://, gs://, memory:// ...), a zip file.

Names are relative, with slashes. What is written appears whole or not at all, everywhere: by renaming on a disk, by
the nature of a PUT in an object store. A tree can be pickled, and used after a fork: connections are made anew in each
process. Credentials come the ways the protocol's library knows, for s3:// the AWS environment variables and profiles.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from dsgen.errors import DsgenError, MissingPackageError
from dsgen.io.atomic import write_bytes

_EXTRAS = {"s3": "s3", "s3a": "s3"}
_HASHED_BYTES = 2**22


class Files(Protocol):
    """What a store needs of the place it is kept in."""

    def read(self, name: str) -> bytes:
        """Return a whole file; `FileNotFoundError` where there is none."""

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """Return `length` bytes from `start` on; a negative `start` counts from the end."""

    def sizes(self) -> dict[str, int]:
        """List every file of the tree with its bytes, in order of name."""

    def has(self, name: str) -> bool:
        """Say whether there is such a file."""


def is_url(place: Path | str) -> bool:
    """Say whether a place is a URL and no local path."""
    return "://" in str(place)


def open_files(place: Path | str) -> "LocalFiles | UrlFiles":
    """Open a local folder or a URL, which need not exist yet."""
    return UrlFiles(str(place)) if is_url(place) else LocalFiles(Path(place))


class LocalFiles:
    """Files below a local folder."""

    def __init__(self, path: Path):
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def child(self, name: str) -> "LocalFiles":
        """Return the tree below one of this tree's folders."""
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
        """List every file with its bytes, in order of name."""
        found: dict[str, int] = {}
        for folder, _, names in os.walk(self.path):
            below = Path(folder).relative_to(self.path).as_posix()
            prefix = "" if below == "." else below + "/"
            for name in names:
                found[prefix + name] = os.stat(os.path.join(folder, name)).st_size
        return dict(sorted(found.items()))

    def top(self) -> list[str]:
        """List the names of files and folders directly below."""
        return sorted(os.listdir(self.path)) if self.path.is_dir() else []

    def has(self, name: str) -> bool:
        """Say whether there is such a file."""
        return (self.path / name).is_file()

    def write(self, name: str, content: bytes) -> None:
        """Write a file whole or not at all, making its folders; two may write the same one at once."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content, apart=True)

    def remove(self, name: str) -> None:
        """Remove a file or a folder with all that is in it, if it is there."""
        path = self.path / name
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


class UrlFiles:
    """Files below a URL, through fsspec."""

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self._opened: tuple[int, Any, str] | None = None

    def __str__(self) -> str:
        return self.url

    def __reduce__(self) -> tuple[Any, ...]:
        return UrlFiles, (self.url,)

    def _fs(self) -> tuple[Any, str]:
        """The file system and the path in it, opened once a process: connections do not survive a fork."""
        if self._opened is None or self._opened[0] != os.getpid():
            protocol = self.url.partition("://")[0]
            try:
                import fsspec

                options = {"use_listings_cache": False, "skip_instance_cache": False}
                fs, path = fsspec.core.url_to_fs(self.url, **options)
            except ImportError as error:
                extra = _EXTRAS.get(protocol)
                remedy = f"pip install 'dsgen[{extra}]'" if extra else f"pip install what fsspec needs ({error})"
                raise MissingPackageError(
                    self.url, f"{protocol}:// needs a package that is not installed", remedy
                ) from error
            except ValueError as error:
                raise DsgenError(self.url, f"not a URL that can be used ({error})", "take another") from error
            self._opened = os.getpid(), fs, path.rstrip("/")
        return self._opened[1], self._opened[2]

    def child(self, name: str) -> "UrlFiles":
        """Return the tree below one of this tree's folders."""
        return UrlFiles(f"{self.url}/{name}")

    def read(self, name: str) -> bytes:
        """Return a whole file."""
        fs, root = self._fs()
        with _translated(self.url):
            return bytes(fs.cat_file(f"{root}/{name}"))

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """Return `length` bytes from `start` on; a negative `start` counts from the end."""
        fs, root = self._fs()
        end = None if start < 0 else start + length
        with _translated(self.url):
            return bytes(fs.cat_file(f"{root}/{name}", start=start, end=end))[:length]

    def sizes(self) -> dict[str, int]:
        """List every file with its bytes, in order of name."""
        fs, root = self._fs()
        with _translated(self.url):
            try:
                found = fs.find(root, detail=True)
            except FileNotFoundError:
                return {}
        return {name[len(root) + 1 :]: entry["size"] for name, entry in sorted(found.items())}

    def top(self) -> list[str]:
        """List the names of files and folders directly below."""
        fs, root = self._fs()
        with _translated(self.url):
            try:
                return sorted({name.rstrip("/")[len(root) + 1 :] for name in fs.ls(root, detail=False)} - {""})
            except FileNotFoundError:
                return []

    def has(self, name: str) -> bool:
        """Say whether there is such a file."""
        fs, root = self._fs()
        with _translated(self.url):
            return bool(fs.isfile(f"{root}/{name}"))

    def write(self, name: str, content: bytes) -> None:
        """Write a file whole or not at all."""
        fs, root = self._fs()
        with _translated(self.url, missing=True):
            fs.pipe_file(f"{root}/{name}", content)

    def remove(self, name: str) -> None:
        """Remove a file or a folder with all that is in it, if it is there."""
        fs, root = self._fs()
        with _translated(self.url):
            try:
                fs.rm(f"{root}/{name}", recursive=True)
            except FileNotFoundError:
                return


def hash_tree(files: Files, sizes: dict[str, int], workers: int) -> Iterator[tuple[str, str | None]]:
    """Yield the name and SHA-256 of every file of `sizes`, in that order; None for one that cannot be read."""

    def digest(name: str) -> str | None:
        sha256 = hashlib.sha256()
        try:
            for start in range(0, sizes[name], _HASHED_BYTES):
                sha256.update(files.read_range(name, start, min(_HASHED_BYTES, sizes[name] - start)))
        except OSError:
            return None
        return sha256.hexdigest()

    with ThreadPoolExecutor(workers) as pool:
        yield from zip(sizes, pool.map(digest, sizes), strict=True)


class _translated:
    """Turns what a remote file system raises, if told so `missing` files too, into a `DsgenError` with the URL."""

    def __init__(self, url: str, missing: bool = False):
        self._url = url
        self._passed: tuple[type[Exception], ...] = (DsgenError,) if missing else (DsgenError, FileNotFoundError)

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: Any) -> None:
        if not isinstance(error, Exception) or isinstance(error, self._passed):
            return
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DsgenError(
            self._url,
            f"cannot be reached or used ({reason})",
            "check the address, the endpoint (--endpoint or AWS_ENDPOINT_URL) and the credentials",
        ) from error
