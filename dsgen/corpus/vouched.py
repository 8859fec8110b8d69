"""Read the files of a corpus that its manifest vouches for: each is compared with its hash when it is read."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import zarr
from zarr.storage import LocalStore, WrapperStore

from dsgen.errors import DamagedError, DsgenError, NotFoundError, reason_of

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

_METADATA = "zarr.json"


class VouchedStore(WrapperStore[LocalStore]):
    """The files of a zarr folder, read-only: one that is missing, or has another hash, is a `DamagedError`.

    `hashes` has the SHA-256 of every file by its name in the folder. Where it is empty, only missing files are errors,
    which zarr by itself would read as zeros.
    """

    def __init__(self, folder: Path, hashes: Mapping[str, str], remedy: str):
        super().__init__(LocalStore(folder, read_only=True))
        self._folder, self._hashes, self._remedy = folder, hashes, remedy

    async def get(
        self, key: str, prototype: "BufferPrototype", byte_range: "ByteRequest | None" = None
    ) -> "Buffer | None":
        """Return a file, compared with its hash; a range of one is not compared."""
        content = await super().get(key, prototype, byte_range)
        if content is None:
            raise DamagedError(self._folder / key, "missing", self._remedy)
        if self._hashes and byte_range is None:
            digest = hashlib.sha256(content.to_bytes()).hexdigest()
            if digest != self._hashes.get(key):
                raise DamagedError(self._folder / key, "damaged, its hash differs from the recorded one", self._remedy)
        return content


def open_vouched(folder: Path, hashes: Mapping[str, str], remedy: str) -> zarr.Group:
    """Open a zarr group, read-only, whose files are compared with `hashes` when they are read; see `VouchedStore`."""
    with named_damage(folder, remedy):
        return zarr.open_group(VouchedStore(folder, hashes, remedy), mode="r", zarr_format=3, use_consolidated=False)


def open_array(
    group: zarr.Group, name: str, folder: Path, remedy: str, layout: tuple[tuple[int, ...], str] | None = None
) -> zarr.Array:
    """Return an array of the group in `folder`; raise `DamagedError` for anything else under its name.

    With `layout`, shape and dtype, the array must have them, in chunks of whole pictures that are no longer than it.
    """
    with named_damage(folder / name, remedy):
        array = group.get(name)
    if not isinstance(array, zarr.Array):
        raise DamagedError(folder / name, "no array", remedy)
    if layout is not None:
        shape, dtype = layout
        whole = array.chunks[1:] == shape[1:] and 1 <= array.chunks[0] <= max(1, shape[0]) and array.shards is None
        if array.shape != shape or array.dtype != dtype or not whole:
            reason = f"{array.dtype} {array.shape} in chunks of {array.chunks}, expected {dtype} {shape}"
            raise DamagedError(folder / name / _METADATA, reason, remedy)
    return array


@contextmanager
def named_damage(what: Path, remedy: str) -> Iterator[None]:
    """Turn what zarr and its codecs raise on missing and damaged files, errors of any class, into a `DamagedError`.

    Errors of the system pass: a disk that cannot be read and memory that runs out are no damage to the file.
    """
    try:
        yield
    except NotFoundError:
        raise
    except FileNotFoundError as error:
        raise DamagedError(what, "missing", remedy) from error
    except (DsgenError, OSError, MemoryError):
        raise
    except Exception as error:
        raise DamagedError(what, f"damaged ({reason_of(error)})", remedy) from error
