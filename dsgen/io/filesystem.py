"""Trees of files in a local folder or at any URL that fsspec supports (s3://, gs://, memory:// ...).

Names are relative, with slashes. Every write is atomic: on a disk by renaming, in an object store because a PUT is.
A tree can be pickled, and used after a fork: each process opens its own connections. Credentials are found as usual for
the protocol's library, for s3:// in the AWS environment variables and profiles.
"""

import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from dsgen.errors import (
    DsgenError,
    InvalidValueError,
    MissingPackageError,
    is_local_shortage,
    is_system_error,
    reason_of,
)
from dsgen.io.atomic import write_bytes
from dsgen.secrets import has_credentials, hide_secrets, note_secrets

_EXTRAS = {"s3": "s3", "s3a": "s3"}  # protocol -> extra of dsgen that installs its package
_HASH_BLOCK_BYTES = 2**22


class Files(Protocol):
    """The tree of files that a store is read from."""

    def read(self, name: str) -> bytes:
        """Return a whole file; raise `FileNotFoundError` if it does not exist."""

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """Return `length` bytes from `start` on; a negative `start` counts from the end."""

    def expect(self, name: str, start: int, length: int) -> None:
        """Say that this range will be read soon, so that a disk can begin; nothing fails by it."""

    def sizes(self) -> dict[str, int]:
        """Return the bytes of every file of the tree, in order of name.

        What is no file, such as a socket or a link to nothing, has the size 0, and is no file to `read` either.
        """

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
        with self._open(name) as (descriptor, _), open(descriptor, "rb", buffering=0, closefd=False) as file:
            return file.read()

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """Return `length` bytes from `start` on, as far as the file goes; a negative `start` counts from the end."""
        with self._open(name) as (descriptor, size):
            start = max(0, size + start) if start < 0 else min(start, size)
            length = min(length, size - start)  # what other files say of a length may be anything
            if hasattr(os, "pread"):
                return os.pread(descriptor, length, start)
            os.lseek(descriptor, start, os.SEEK_SET)
            return os.read(descriptor, length)

    def expect(self, name: str, start: int, length: int) -> None:
        """Have the system read a range ahead, where it can."""
        if hasattr(os, "posix_fadvise"):
            with suppress(OSError), self._open(name) as (descriptor, _):
                os.posix_fadvise(descriptor, start, length, os.POSIX_FADV_WILLNEED)

    @contextmanager
    def _open(self, name: str) -> Iterator[tuple[int, int]]:
        """Open a file to read; yield its descriptor and size. The errors of the system name the file."""
        path = f"{self.path}{os.sep}{name}"
        try:
            # without O_NONBLOCK opening a pipe waits for somebody to write to it
            flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
            descriptor = os.open(path, flags)
            try:
                found = os.fstat(descriptor)
                if not stat.S_ISREG(found.st_mode):
                    raise FileNotFoundError(errno.ENOENT, "not a file", path)
                yield descriptor, found.st_size
            finally:
                os.close(descriptor)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise FileNotFoundError(errno.ENOENT, "not a file", path) from error
            if error.filename is None and error.errno is not None:
                raise type(error)(error.errno, error.strerror, path) from error
            raise

    def sizes(self) -> dict[str, int]:
        """Return the bytes of every file, in order of name; 0 for what is no file. Links to folders are not entered.

        A folder that cannot be listed is named with a slash at its end, and has the size 0.
        """
        found: dict[str, int] = {}

        def note_unreadable(error: OSError) -> None:
            if not is_system_error(error):  # such as a folder that another process has removed
                return
            if not isinstance(error, PermissionError) or Path(error.filename) == self.path:
                raise error
            found[Path(error.filename).relative_to(self.path).as_posix() + "/"] = 0

        for folder, folders, names in os.walk(self.path, onerror=note_unreadable):
            relative = Path(folder).relative_to(self.path).as_posix()
            prefix = "" if relative == "." else relative + "/"
            linked = [name for name in folders if os.path.islink(os.path.join(folder, name))]
            for name in (*names, *linked):
                found[prefix + name] = _file_size(os.path.join(folder, name))
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
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _file_size(path: str) -> int:
    """Return the bytes of a file, 0 for what is none: a link to nothing, in a loop or to a folder, a socket, a pipe."""
    try:
        found = os.stat(path)
    except OSError as error:
        if is_system_error(error) and not isinstance(error, PermissionError):
            raise
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) else 0


class UrlFiles:
    """The files below a URL, accessed through fsspec. As a text it has no secrets."""

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self._opened: tuple[int, Any, str] | None = None
        note_secrets(url)

    def __str__(self) -> str:
        return hide_secrets(self.url)

    def __reduce__(self) -> tuple[Any, ...]:
        return UrlFiles, (self.url,)

    def _fs(self) -> tuple[Any, str]:
        """The file system and the path in it, opened once per process: connections do not survive a fork."""
        if self._opened is None or self._opened[0] != os.getpid():
            protocol = self.url.partition("://")[0]
            if protocol in _EXTRAS and has_credentials(self.url):
                raise InvalidValueError(
                    self.url,
                    f"got keys in the URL, expected {protocol}://BUCKET/PATH",
                    "give them in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or in a profile",
                )
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

    def expect(self, name: str, start: int, length: int) -> None:
        """Do nothing: requests of several threads are under way at a time anyway."""

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
    """Yield the name and SHA-256 of every file in `sizes`, in that order; None for what cannot be read.

    A file without permission, or on a broken place of the disk, is such a one; other errors of the system are raised.
    """

    def digest(name: str) -> str | None:
        sha256 = hashlib.sha256()
        try:
            if not sizes[name]:
                sha256.update(files.read(name))  # which fails if it is no file
            for start in range(0, sizes[name], _HASH_BLOCK_BYTES):
                sha256.update(files.read_range(name, start, min(_HASH_BLOCK_BYTES, sizes[name] - start)))
        except OSError as error:
            if is_system_error(error) and error.errno not in (errno.EACCES, errno.EPERM, errno.EIO):
                raise
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
        if (isinstance(error, FileNotFoundError) and not missing) or is_local_shortage(error):
            raise
        raise DsgenError(
            url,
            f"cannot be reached or used ({reason_of(error)})",
            "check the address, the endpoint (--endpoint or AWS_ENDPOINT_URL) and the credentials",
        ) from error
